//! Two hours without a store, with time made short: the uploader's own sending and spool, on a clock of the test's.

use std::sync::Arc;

use tokio::time::{self, Instant};
use uploader::{
    delivery::{self, Delivery},
    flags::Flags,
    spool::Spool,
    store::parca::{Parca, series},
    targets::TargetMaker,
};

use super::*;

const OUTAGE: Duration = Duration::from_hours(2);
const WINDOW: Duration = Duration::from_secs(10);

/// A profile as small as one may be.
fn profile() -> Vec<u8> {
    use proto::pprof::{Location, Mapping, Profile, Sample, ValueType};
    let types = ValueType { r#type: 1, unit: 2 };
    let message = Profile {
        sample_type: vec![types],
        sample: vec![Sample { location_id: vec![1], value: vec![1], label: vec![] }],
        mapping: vec![Mapping { id: 1, ..Mapping::default() }],
        location: vec![Location { id: 1, mapping_id: 1, ..Location::default() }],
        string_table: ["", "samples", "count"].map(Into::into).into(),
        time_nanos: 1,
        duration_nanos: 1,
        period_type: Some(types),
        period: 1,
        ..Profile::default()
    };
    uploader::profile::to_gzip(&message)
}

#[tokio::test(start_paused = true)]
async fn two_hours_without_a_store_lose_nothing() {
    let (journal, port, folder) = (Journal::default(), free_port(), tempfile::tempdir().unwrap());
    let spool = Arc::new(Spool::open(folder.path(), 512 << 20).unwrap());
    let delivery = Arc::new(Delivery::new("the store".into(), Arc::clone(&spool)));
    let address = format!("--store-address=127.0.0.1:{port}");
    let flags = Flags::parse_line(["bulkhead-uploader", &address, "--insecure"]).unwrap();
    let store = Arc::new(Parca::open(&flags.store).unwrap());
    tokio::spawn(delivery::run(Arc::clone(&delivery), store, WINDOW));

    let (begun, profile) = (Instant::now(), profile());
    let mut windows = 0;
    while begun.elapsed() < OUTAGE {
        let labels = TargetMaker::new("n", []).labels(&format!("window-{windows}"), None);
        assert_eq!(delivery::put(&spool, vec![series(&labels, profile.clone())]), 0);
        windows += 1;
        time::sleep(WINDOW).await;
    }
    assert_eq!(spool.content().profiles, windows);
    assert!(delivery.sentence().contains("has not taken profiles for"), "{}", delivery.sentence());
    // Longer and longer pauses: a try a minute and not one a second.
    let tries: u64 = delivery.counts().calls.values().sum();
    assert!((100..400).contains(&tries), "{tries} tries in two hours");

    time::resume();
    let _store = Store::start(port, &StoreOptions::default(), &journal);
    let deadline = Instant::now() + Duration::from_mins(5);
    while journal.arrived().len() < usize::try_from(windows).unwrap() {
        assert!(Instant::now() < deadline, "{} of {windows} have arrived", journal.arrived().len());
        time::sleep(Duration::from_millis(100)).await;
    }
    // In order, and each once.
    let arrived: Vec<String> = journal.arrived().iter().map(|one| one.labels["comm"].clone()).collect();
    assert_eq!(arrived, (0..windows).map(|number| format!("window-{number}")).collect::<Vec<_>>());
    assert_eq!((journal.problems(), spool.counts().dropped), (vec![], 0));
}
