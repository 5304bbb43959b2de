//! Debian's programs in a process guest: output and exit code of a container.

use berth_tests::fixtures;
use berth_tests::home::Home;

use crate::process_guest::{is_possible, same};

/// Runs shell scripts in both, and says which.
fn scripts_are_the_same(scripts: &[&str]) {
    let home = Home::empty();
    let _ = home.berth("load -i").arg(fixtures::tools_layout()).ok();
    for script in scripts {
        let guest = same(&home, "", &["tools", "bash", "-c", &format!("exec 2>&1; {script}")], "");
        assert!(!guest.text().is_empty(), "{script} says nothing");
    }
}

#[test]
fn bash_and_coreutils() {
    if !is_possible("bash and coreutils in a process guest") {
        return;
    }
    scripts_are_the_same(&[
        "a=(1 2 3); echo ${a[@]}; for i in {1..5}; do echo $((i*i)); done | paste -sd+; coproc cat; echo hi >&${COPROC[1]}; \
         read -u ${COPROC[0]} x; echo $x; diff <(seq 3) <(seq 4); echo $?; set -o pipefail; false | true; echo $?",
        "sleep 5 & p=$!; kill -TERM $p; wait $p; echo $?; trap 'echo int' INT; kill -INT $$; ulimit -n -s; ulimit -n 50; \
         ulimit -n; umask 027; touch /tmp/x; stat -c %a /tmp/x",
        "ls -la /usr/bin | wc -l; cp -a /etc /tmp/e; diff -r /etc /tmp/e && rm -rf /tmp/e; head -c 100000 /dev/zero | sha256sum; \
         split -b 10 - /tmp/s_ < /etc/passwd; cat /tmp/s_* | cmp - /etc/passwd; seq 100000 | sort -nr | head -1; nproc; \
         timeout 0.2 sleep 3; echo $?; df / | wc -l; mount | wc -l; factor 1234567; truncate -s 5M /tmp/t; ln -s /tmp/t /tmp/l; \
         readlink -f /tmp/l; install -m 700 /bin/true /tmp/tr; /tmp/tr; echo $?; nice -n 5 nice; mkfifo /tmp/p; \
         echo through > /tmp/p & cat /tmp/p; chown 7:8 /tmp/t; stat -c '%u %g %s' /tmp/t",
        "find / -xdev -type f -name '*.so*' | wc -l; find /usr/bin -perm -4000 | sort; \
         find /etc -maxdepth 1 -type d -print0 | xargs -0 -n1 -P4 basename | sort | head -5",
        "grep -rn root /etc/passwd; sed -e 's/root/toor/;2q' /etc/passwd; \
         gawk 'BEGIN { while ((\"ls /etc\" | getline x) > 0) n++; print n > 0; system(\"echo sys\") }'; echo a,b | awk -F, '{print $2}'",
    ]);
}

#[test]
fn archives_databases_perl_and_git() {
    if !is_possible("tar, xz, sqlite3, perl and git in a process guest") {
        return;
    }
    scripts_are_the_same(&[
        "cd /tmp; tar cf a.tar -C / etc; tar tf a.tar | wc -l; tar czf a.tgz -C / etc; gzip -t a.tgz; mkdir x; tar xzf a.tgz -C x; \
         diff -r /etc x/etc && echo same; xz -T2 -k a.tar; xz -dc a.tar.xz | cmp - a.tar; zcat a.tgz | tar t | tail -1",
        "cd /tmp; sqlite3 db 'create table t(a,b); insert into t values(1,2),(3,4); select sum(a*b) from t; \
         pragma journal_mode=wal; pragma integrity_check'; for i in 1 2 3 4; do sqlite3 -cmd '.timeout 9000' db \
         \"insert into t values($i,$i)\" & done; wait; sqlite3 db 'select count(*) from t'",
        "perl -e 'open(F,q(-|),q(echo pipe)); print <F>; my $p=fork(); if(!$p){exit 7} waitpid($p,0); print $?>>8, qq(\\n); \
         $SIG{ALRM}=sub{print qq(alarm\\n); exit 3}; alarm 1; sleep 5'; echo $?; perl -MIO::Socket::INET -e \
         '$s=IO::Socket::INET->new(Listen=>1,LocalAddr=>q(127.0.0.1)); if(!fork){$c=IO::Socket::INET->new(PeerAddr=>q(127.0.0.1),\
         PeerPort=>$s->sockport); print $c qq(net\\n); exit} $a=$s->accept; print <$a>; wait'",
        "cd /tmp; export HOME=/tmp GIT_AUTHOR_DATE='@1 +0000' GIT_COMMITTER_DATE='@1 +0000'; git config --global user.name a; \
         git config --global user.email a@b; git init -qb main r; cd r; for i in 1 2 3; do echo $i > f$i; git add .; \
         git commit -qm $i; done; git log --oneline; git checkout -qb x HEAD~1; echo y > y; git add y; git commit -qm y; \
         git merge -q main -m m; git status -s; git fsck; git gc -q; cd ..; git clone -q r s; cd s; git log --format=%s | sort; \
         git diff HEAD~1 --stat; git grep -n y",
    ]);
}

#[test]
fn python_with_threads_processes_sockets_and_signals() {
    if !is_possible("python3's libraries in a process guest") {
        return;
    }
    let library = include_str!("process_guest_programs/library.py");
    let signals = include_str!("process_guest_programs/signals.py");
    scripts_are_the_same(&[
        &format!("python3 - << 'END'\n{library}\nEND"),
        &format!("python3 - << 'END'\n{signals}\nEND"),
        // The parts of Python's own tests that are quick; docs/process-guest.md has the counts of all.
        "python3 -m unittest test.test_json test.test_zlib test.test_select test.test_epoll test.test_mmap test.test_eintr \
         2>&1 | grep -E '^(OK|FAILED|ERROR|FAIL)'",
    ]);
}

#[test]
fn busybox_applets() {
    if !is_possible("busybox applets in a process guest") {
        return;
    }
    let home = Home::new();
    // A line is a command; its output stands below it, so that a difference names it.
    let commands = include_str!("process_guest_programs/applets").lines();
    let quoted = |command: &str| format!("'{}'", command.replace('\'', "'\\''"));
    let script: Vec<String> = commands
        .map(|command| format!("printf '%s\\n' {0}; sh -c {0} 2>&1; echo \"code $?\"", quoted(command)))
        .collect();
    let guest = same(&home, "--hostname boat", &["busybox", "sh", "-c", &script.join("\n")], "");
    assert!(!guest.text().contains("code 127"), "an applet is missing: {guest:?}");
}
