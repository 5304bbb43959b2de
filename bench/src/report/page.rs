//! The page round the sections.

use std::fmt::Write as _;

use super::html::{number, text};
use super::sections;
use crate::document::{Document, Measured, What};
use crate::host::Host;

/// Colours and measures. The first colours are for screens by day; those by night and those for paper follow.
const STYLE: &str = include_str!("style.css");

pub fn page(document: &Document) -> String {
    let mut html = String::from("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    let _ = write!(
        html,
        "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n",
        text(title(document)),
    );
    html.push_str("<header><p class=\"brand\">berth bench</p><h1>What isolation costs</h1>\n");
    html.push_str("<p class=\"lead\">Containers, microVMs and Wasm sandboxes, started and used side by side.</p></header>\n<main>\n");
    for results in by_host(document) {
        section(&mut html, &results);
    }
    html.push_str("</main>\n<footer>Made by <code>berth bench</code> from what it measured; nothing in it comes from elsewhere.</footer>\n</body>\n</html>\n");
    html
}

fn title(document: &Document) -> String {
    let hosts: Vec<_> = by_host(document).iter().map(|results| results[0].host.title().to_owned()).collect();
    format!("What isolation costs: {}", hosts.join(", "))
}

/// The measurements of each host, in the order in which they come.
fn by_host(document: &Document) -> Vec<Vec<&Measured>> {
    let mut hosts: Vec<Vec<&Measured>> = Vec::new();
    for measured in &document.results {
        match hosts.iter_mut().find(|results| results[0].host == measured.host) {
            Some(results) => results.push(measured),
            None => hosts.push(vec![measured]),
        }
    }
    hosts
}

fn section(html: &mut String, results: &[&Measured]) {
    html.push_str("<section class=\"host\">\n");
    describe(html, &results[0].host);
    for measured in results {
        match &measured.what {
            What::Startup(startup) => sections::startup(html, startup),
            What::Density(density) => sections::density(html, density),
            What::Work(work) => sections::work(html, work),
        }
        let (load, began) = (&measured.load, measured.began.strftime("%Y-%m-%d %H:%M UTC"));
        let _ = writeln!(
            html,
            "<p class=\"when\">Measured {}; load average {} before, {} after.</p>",
            text(began),
            number(load.before),
            number(load.after),
        );
        if !measured.noise.is_empty() {
            html.push_str("<aside class=\"noise\"><strong>To be taken with care</strong><ul>");
            for line in &measured.noise {
                let _ = write!(html, "<li>{}</li>", text(line));
            }
            html.push_str("</ul></aside>\n");
        }
    }
    html.push_str("</section>\n");
}

fn describe(html: &mut String, host: &Host) {
    let _ = write!(html, "<h2><span class=\"eyebrow\">Host</span>{}</h2>\n<dl class=\"facts\">", text(host.title()));
    let mut fact = |name: &str, value: String| {
        let _ = write!(html, "<div><dt>{name}</dt><dd>{}</dd></div>", text(value));
    };
    fact("Processor", format!("{} × {}", host.cpus, host.cpu));
    fact("Memory", format!("{:.1} GiB", host.memory as f64 / f64::from(1 << 30)));
    fact("Kernel", host.kernel.clone());
    fact("System", host.system.clone());
    fact("Virtualization", host.kvm_kind().to_owned());
    fact("Control groups", host.cgroups.clone());
    fact(
        "berth",
        format!("{}{}", host.berth, if host.optimised { "" } else { ", a debug build: times are not berth's" }),
    );
    html.push_str("</dl>\n");
}
