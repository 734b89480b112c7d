//! `dwcp`: moves live, changing state between hosts. What an operator runs.

mod bars;
mod baseline;
mod cli;
mod demo;
mod dictionary;
mod dual;
mod estimate;
mod exit;
mod flag;
mod identity;
mod interrupt;
mod legacy;
mod methods;
mod pace;
mod place;
mod quarantine;
mod receive;
mod report;
mod resolve;
mod send;
mod state;
mod statistics;
mod transfers;
mod units;
mod words;

use std::process::ExitCode;

use clap::Parser;
use serde::Serialize;

use crate::cli::{Cli, Command};
use crate::exit::{Exit, Failure};
use crate::report::Report;
use crate::words::Words;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return misused(&error),
    };
    // A process of the demo tells the command that started it, and outlives its folder for a moment.
    let part = matches!(cli.command, Command::DemoPart(_));
    log(if part { tracing::Level::ERROR } else { level(cli.verbose) });
    let report = Report::new(cli.command.json());
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            return report.failed(&Failure::new(Exit::Failed, format!("cannot start threads: {error}"))).into();
        }
    };
    let exit = runtime.block_on(run(cli.command, &report));
    // A thread blocked in a read of a dead disk must not keep us.
    runtime.shutdown_background();
    exit.into()
}

#[derive(Serialize)]
struct Misused {
    verdict: &'static str,
    error: String,
    advice: &'static str,
}

/// A command line that makes no sense, or one that asks for help. Who wants JSON gets its last line
/// of the former too.
fn misused(error: &clap::Error) -> ExitCode {
    // Nothing is left to do when stderr is closed.
    let _ = error.print();
    if !error.use_stderr() {
        return Exit::Ok.into();
    }
    let json = std::env::args_os().take_while(|word| word != "--").any(|word| word == "--json");
    let text = error.render().to_string();
    // Behind it come usage and a hint at --help, for people.
    let what = text.split("\n\nUsage:").next().and_then(|text| text.split("\n\nFor more").next()).unwrap_or(&text);
    let what = what.split_whitespace().collect::<Vec<_>>().join(" ");
    let error = what.strip_prefix("error: ").unwrap_or(&what).to_owned();
    let advice = "See --help of the command.";
    Report::new(json).event("summary", &Misused { verdict: Exit::Usage.word(), error, advice });
    Exit::Usage.into()
}

async fn run(command: Command, report: &Report) -> Exit {
    let result = match command {
        Command::Identity(args) => identity::run(args, report),
        Command::Send(args) if args.legacy.shared.v1.is_some() => return legacy::send(&args, report).await,
        Command::Send(args) => return send::run(args, Words::of_process(), report).await,
        Command::Estimate(args) => estimate::run(&args, report),
        Command::Receive(args) => receive::run(args, report).await,
        Command::Resolve(args) => resolve::run(args, report).await,
        Command::Quarantine(args) => quarantine::run(args, report),
        Command::Flag(args) => flag::run(args, report),
        Command::Baseline(args) => baseline::run(args, report),
        Command::Dictionary(args) => dictionary::run(args, report),
        Command::Transfers(args) => transfers::run(args.command, report).await,
        Command::Demo(args) => return demo::run(&args, report).await,
        Command::DemoPart(args) => return demo::part(&args).await,
    };
    result.unwrap_or_else(|failure| report.failed(&failure))
}

fn level(verbose: u8) -> tracing::Level {
    match verbose {
        0 => tracing::Level::WARN,
        1 => tracing::Level::INFO,
        _ => tracing::Level::DEBUG,
    }
}

fn log(level: tracing::Level) {
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(report::colours())
        .with_writer(std::io::stderr)
        .with_target(false)
        .init();
}
