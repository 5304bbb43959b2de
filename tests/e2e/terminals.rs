//! `-t`: a terminal in the container that follows the caller's.

use berth_tests::home::Home;
use berth_tests::terminal::Terminal;
use berth_tests::wait;

#[test]
fn t_gives_a_terminal_of_the_callers_size() {
    let home = Home::new();
    let command = home.berth("run --rm -it busybox sh -c").arg("test -t 0 && test -t 1 && stty size; echo TERM=$TERM");
    let mut terminal = Terminal::start(command, 91, 33);
    terminal.expect("33 91");
    terminal.expect("TERM=xterm");
    assert_eq!(terminal.wait(), 0);
    assert_eq!(home.prints("", "test -t 1 || echo none"), "none");
}

#[test]
fn a_new_window_size_reaches_the_command() {
    let home = Home::new();
    let script = "trap 'echo now $(stty size)' WINCH; echo ready; while :; do sleep 0.1; done";
    let mut terminal = Terminal::start(home.berth("run --rm -it busybox sh -c").arg(script), 80, 24);
    terminal.expect("ready");
    terminal.resize(123, 45);
    terminal.expect("now 45 123");
    terminal.type_in("\x03");
    assert_eq!(terminal.wait(), 130);
}

#[test]
fn ctrl_c_is_the_commands_business() {
    let home = Home::new();
    let script = "trap 'echo caught; exit 7' INT; echo ready; while :; do sleep 0.1; done";
    for flags in ["-it", "-i"] {
        let mut terminal = Terminal::start(home.shell(flags, script), 80, 24);
        terminal.expect("ready");
        terminal.type_in("\x03");
        terminal.expect("caught");
        assert_eq!(terminal.wait(), 7, "with {flags}");
    }
}

#[test]
fn ctrl_c_ends_a_first_process_that_does_nothing_about_it() {
    let home = Home::new();
    for (key, code) in [("\x03", 130), ("\x1c", 131)] {
        let mut terminal = Terminal::start(home.berth("run --rm -it busybox cat"), 80, 24);
        terminal.type_in("word\n");
        terminal.expect("word\r\nword");
        terminal.type_in(key);
        assert_eq!(terminal.wait(), code);
    }
    // Not where the program has told the terminal that the key is an ordinary one.
    let mut terminal = Terminal::start(home.shell("-it", "stty -isig; echo ready; exec cat -v"), 80, 24);
    terminal.expect("ready");
    terminal.type_in("\x03\n");
    terminal.expect("^C\r\n^C");
    terminal.type_in("\x04");
    assert_eq!(terminal.wait(), 0);
}

#[test]
fn what_is_typed_arrives_and_the_terminal_is_left_as_it_was() {
    let home = Home::new();
    let mut terminal = Terminal::start(home.berth("run --rm -it busybox sh"), 80, 24);
    assert!(terminal.is_cooked());
    wait::until("the caller's terminal is raw", || !terminal.is_cooked());
    terminal.type_in("echo $((6 * 7))\n");
    terminal.expect("42");
    terminal.type_in("exit 5\n");
    assert_eq!(terminal.wait(), 5);
    assert!(terminal.is_cooked(), "the terminal stays raw");
}

#[test]
fn t_without_a_terminal_works_in_a_pipe() {
    let home = Home::new();
    let out = home.berth("run --rm -t busybox sh -c").arg("test -t 1 && echo yes").ok();
    assert_eq!(out.text(), "yes\r\n", "the container's own terminal turns \\n into \\r\\n");
}

#[test]
fn a_program_that_controls_jobs_has_its_terminal() {
    let home = Home::new();
    let mut terminal = Terminal::start(home.berth("run --rm -it busybox sh -i"), 80, 24);
    terminal.expect("# ");
    terminal.type_in("sleep 1000\n");
    let name = home.containers().pop().expect("one container");
    wait::until("sleep is there", || home.berth("top").arg(&name).run().text().contains("sleep"));
    terminal.type_in("\x03");
    terminal.type_in("echo $((1 + 130))\n");
    terminal.expect("131");
    assert!(!terminal.screen().contains("can't access tty"), "{}", terminal.screen());
    terminal.type_in("exit 0\n");
    assert_eq!(terminal.wait(), 0);
}
