//! Where logs go. Made only in processes that fork no more: the writer is a thread.

use super::plan::LogPlan;
use slog::{Drain, Logger, o};
use std::fs::File;
use std::io::{self, Write};
use std::sync::Mutex;

/// Records that may wait for the writer; more are counted and left out.
const QUEUE: usize = 512;

/// A logger for this process: to `file`, or to standard error.
pub(crate) fn root(plan: &LogPlan, file: Option<File>) -> Logger {
    let to: Box<dyn Write + Send> = match file {
        Some(f) => Box::new(f),
        None => Box::new(io::stderr()),
    };
    let level = plan.level;
    let drain: Box<dyn Drain<Ok = (), Err = slog::Never> + Send> = if plan.json {
        Box::new(Mutex::new(slog_json::Json::default(to)).ignore_res())
    } else {
        let decorator = slog_term::PlainSyncDecorator::new(to);
        // UTC: a confined process cannot read the time zone.
        Box::new(slog_term::FullFormat::new(decorator).use_utc_timestamp().build().ignore_res())
    };
    let drain = slog_async::Async::new(drain)
        .chan_size(QUEUE)
        .overflow_strategy(slog_async::OverflowStrategy::DropAndReport)
        .build()
        .filter_level(level)
        .ignore_res();
    Logger::root(drain, o!())
}
