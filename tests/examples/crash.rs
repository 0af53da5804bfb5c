//! The long run of the proof, and single runs again: `cargo xtask crash`.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Instant;

use oxcow_tests::crash::bench::{Bench, Figures, Found};
use oxcow_tests::crash::campaign::{Campaign, Outcome, Piece};
use oxcow_tests::crash::engine::Oxcow;
use oxcow_tests::crash::fault::Fault;
use oxcow_tests::crash::faults::Faults;
use oxcow_tests::crash::overlap::{GuestOp, overlap};
use oxcow_tests::crash::run::run;
use oxcow_tests::crash::script::Op;
use oxcow_tests::crash::sim_exec::Choices;
use oxcow_tests::crash::starts::StartKind;
use oxcow_tests::{parallel, scratch};
use serde_json::{Value, json};

const USAGE: &str = "\
usage: crash [--scripts N] [--start NAME]... [--continue-one-in N] [--kill-one-in N] [--fail-one-in N]
             [--seed N] [--fresh] [--save FILE]
           all scripts of at most N operations (3 unless told); goes on where it was stopped
       crash --start NAME --script 'OP,OP' [--fault NAME --at N]
       crash --start NAME --overlap 'OP,OP' [--cancel] --choices N,N
           one run again";

/// What the command line asks for.
struct Options {
    campaign: Campaign,
    fresh: bool,
    save: Option<PathBuf>,
    script: Option<Vec<Op>>,
    fault: Option<Fault>,
    at: u64,
    overlap: Option<Vec<GuestOp>>,
    cancel: bool,
    choices: Vec<u8>,
}

/// The names in a list, each looked up.
fn list<T>(text: &str, look_up: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, String> {
    let names = text.split(',').filter(|name| !name.is_empty());
    names
        .map(|name| look_up(name).ok_or(format!("what is {name:?}?")))
        .collect()
}

fn parse(args: &[String]) -> Result<Options, String> {
    let mut options = Options {
        campaign: Campaign {
            continue_one_in: 16,
            kill_one_in: 64,
            fail_one_in: 64,
            ..Campaign::of_length(3)
        },
        fresh: false,
        save: None,
        script: None,
        fault: None,
        at: 0,
        overlap: None,
        cancel: false,
        choices: Vec::new(),
    };
    let mut starts = Vec::new();
    let mut args = args.iter();
    while let Some(option) = args.next() {
        let mut value = || args.next().ok_or(format!("{option} wants a value"));
        let number = |text: &String| text.parse().map_err(|_| format!("{text:?} is no number"));
        let campaign = &mut options.campaign;
        match option.as_str() {
            "--scripts" => campaign.length = number(value()?)? as usize,
            "--start" => starts.extend(list(value()?, StartKind::named)?),
            "--continue-one-in" => campaign.continue_one_in = number(value()?)?,
            "--kill-one-in" => campaign.kill_one_in = number(value()?)?,
            "--fail-one-in" => campaign.fail_one_in = number(value()?)?,
            "--seed" => campaign.seed = number(value()?)?,
            "--fresh" => options.fresh = true,
            "--save" => options.save = Some(value()?.into()),
            "--script" => options.script = Some(list(value()?, Op::named)?),
            "--fault" => options.fault = list(value()?, Fault::named)?.pop(),
            "--at" => options.at = number(value()?)?,
            "--overlap" => options.overlap = Some(list(value()?, GuestOp::named)?),
            "--cancel" => options.cancel = true,
            "--choices" => options.choices = list(value()?, |text| text.parse().ok())?,
            _ => return Err(format!("what is {option:?}?\n{USAGE}")),
        }
    }
    if !starts.is_empty() {
        options.campaign.starts = starts;
    }
    Ok(options)
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let result = parse(&args).and_then(|options| {
        if options.script.is_some() || options.overlap.is_some() {
            again(&options)
        } else {
            conduct(&options, &args)
        }
    });
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("crash: {error}");
            ExitCode::from(2)
        }
    }
}

/// One run again.
fn again(options: &Options) -> Result<ExitCode, String> {
    let [start] = options.campaign.starts[..] else {
        return Err("one --start is needed".into());
    };
    let bench = Bench::new(start);
    bench.on_new_point(|bench, judged| {
        let files = bench.machine.files();
        let unflushed: Vec<usize> = files.iter().map(|file| file.slots().len()).collect();
        let change = bench.machine.counts().changes();
        match judged {
            Ok(tally) => println!("change {change}, un-flushed sectors {unflushed:?}: {tally:?}"),
            Err(violation) => println!("change {change}, un-flushed {unflushed:?}: {violation}"),
        }
    });
    let result: Result<(), Box<Found>> = if let Some(ops) = &options.overlap {
        let mut choices = Choices::given(options.choices.clone());
        overlap::<Oxcow>(&bench, ops, options.cancel, &mut choices)
    } else {
        let ops = options.script.clone().unwrap_or_default();
        match options.fault {
            None => run::<Oxcow>(&bench, &ops, 0),
            Some(fault) => Faults::default().one::<Oxcow>(&bench, &ops, fault, options.at),
        }
    };
    Ok(match result {
        Ok(()) => {
            println!("no violation: {:?}", bench.take_figures());
            ExitCode::SUCCESS
        }
        Err(found) => {
            println!("{found}");
            ExitCode::FAILURE
        }
    })
}

/// What is known of a piece that was done.
fn to_json(piece: &str, outcome: &Outcome) -> Value {
    let figures = |f: &Figures| {
        json!([
            f.scripts,
            f.points,
            f.known,
            f.sampled,
            f.choices,
            f.states,
            f.metadata,
            f.continued
        ])
    };
    json!({
        "piece": piece,
        "scripts": figures(&outcome.scripts),
        "faults": figures(&outcome.faults),
        "continued": outcome.continued,
        "cpu_us": outcome.cpu_us,
        "violating": outcome.violating,
        "found": outcome.found,
    })
}

fn from_json(value: &Value) -> Option<(String, Outcome)> {
    let figures = |value: &Value| {
        let at = |index: usize| value[index].as_u64();
        Some(Figures {
            scripts: at(0)?,
            points: at(1)?,
            known: at(2)?,
            sampled: at(3)?,
            choices: at(4)?,
            states: at(5)?,
            metadata: at(6)?,
            continued: at(7)?,
        })
    };
    let found = value["found"].as_object()?.iter();
    let found: BTreeMap<String, String> = found
        .map(|(kind, example)| Some((kind.clone(), example.as_str()?.to_owned())))
        .collect::<Option<_>>()?;
    let outcome = Outcome {
        scripts: figures(&value["scripts"])?,
        faults: figures(&value["faults"])?,
        continued: value["continued"].as_u64()?,
        cpu_us: value["cpu_us"].as_u64()?,
        contents: 0,
        violating: value["violating"].as_u64()?,
        found,
    };
    Some((value["piece"].as_str()?.to_owned(), outcome))
}

/// Where the progress of this campaign with this engine is kept.
fn progress_file(campaign: &Campaign) -> PathBuf {
    let program = std::env::current_exe().and_then(std::fs::read);
    let described = format!("{campaign:?}");
    let bytes = program.unwrap_or_default();
    let hash = described
        .bytes()
        .chain(bytes)
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
    let folder = scratch::cache().join("crash");
    std::fs::create_dir_all(&folder).expect("the target folder can be written");
    folder.join(format!("{hash:016x}.jsonl"))
}

/// The long run.
fn conduct(options: &Options, args: &[String]) -> Result<ExitCode, String> {
    let campaign = &options.campaign;
    let file = progress_file(campaign);
    if options.fresh {
        let _ = std::fs::remove_file(&file);
    }
    let known = std::fs::read_to_string(&file).unwrap_or_default();
    let mut done: BTreeMap<String, Outcome> = known
        .lines()
        .filter_map(|line| from_json(&serde_json::from_str(line).ok()?))
        .collect();
    let pieces = campaign.pieces();
    let left: Vec<Piece> = pieces
        .iter()
        .filter(|piece| !done.contains_key(&piece.name()))
        .copied()
        .collect();
    println!(
        "all scripts of at most {} operations from {} start states: {} pieces, {} done before ({})",
        campaign.length,
        campaign.starts.len(),
        pieces.len(),
        done.len(),
        file.display()
    );
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&file);
    let log = Mutex::new(log.map_err(|error| format!("{}: {error}", file.display()))?);
    let running: Mutex<(usize, Outcome)> = Mutex::new((done.len(), Outcome::default()));
    let began = Instant::now();
    let outcomes = parallel::map(&left, |piece| {
        let outcome = campaign.run::<Oxcow>(*piece);
        let line = to_json(&piece.name(), &outcome).to_string() + "\n";
        let mut log = log.lock().expect("no worker panics here");
        log.write_all(line.as_bytes())
            .expect("the progress can be written");
        drop(log);
        let mut running = running.lock().expect("no worker panics here");
        running.0 += 1;
        running.1.add(outcome.clone());
        let seconds = began.elapsed().as_secs_f64();
        println!(
            "{}/{} {:<40} {:>10.3e} states, {:.2e} a second, {} violations",
            running.0,
            pieces.len(),
            piece.name(),
            running.1.scripts.states as f64,
            running.1.scripts.states as f64 / seconds,
            running.1.violating
        );
        outcome
    });
    done.extend(left.iter().map(Piece::name).zip(outcomes));
    let mut total = Outcome::default();
    let mut starts: BTreeMap<String, Outcome> = BTreeMap::new();
    for (piece, outcome) in done {
        let start = piece.split('/').next().unwrap_or_default().to_owned();
        starts.entry(start).or_default().add(outcome.clone());
        total.add(outcome);
    }
    for example in total.found.values() {
        println!("{example}");
    }
    let summary = summary(campaign, args, &starts, &total);
    let text = serde_json::to_string_pretty(&summary).expect("it is plain JSON") + "\n";
    println!("{text}");
    if let Some(save) = &options.save {
        std::fs::write(save, text).map_err(|error| format!("{}: {error}", save.display()))?;
    }
    Ok(if total.violating == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The figures that are checked in.
fn summary(
    campaign: &Campaign,
    args: &[String],
    starts: &BTreeMap<String, Outcome>,
    total: &Outcome,
) -> Value {
    let figures = |outcome: &Outcome| {
        let (scripts, faults) = (outcome.scripts, outcome.faults);
        let seconds = outcome.cpu_us as f64 / 1e6;
        let rate = if seconds > 0.0 {
            scripts.states as f64 / seconds
        } else {
            0.0
        };
        json!({
            "scripts": scripts.scripts,
            "points": scripts.points,
            "points met before": scripts.known,
            "points sampled": scripts.sampled,
            "crash states": scripts.states,
            "crash states that differ in metadata": scripts.metadata,
            "mappings walked": scripts.choices,
            "images used on after a power cut": outcome.continued,
            "images used on after a kill or an error": faults.continued,
            "points judged while they were": faults.points,
            "processor seconds": seconds.round(),
            "crash states a processor second": rate.round(),
            "scripts with violations": outcome.violating,
        })
    };
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let per_start: BTreeMap<&String, Value> = starts
        .iter()
        .map(|(start, outcome)| (start, figures(outcome)))
        .collect();
    json!({
        "command": format!("cargo xtask crash {}", args.join(" ")),
        "operations": Op::ALL.len() + Op::WHOLE.len(),
        "longest script": campaign.length,
        "continues from one image in": campaign.continue_one_in,
        "kills one script in": campaign.kill_one_in,
        "fails one script in": campaign.fail_one_in,
        "seed": campaign.seed,
        "all": figures(total),
        "starts": per_start,
    })
}
