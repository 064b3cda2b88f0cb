//! The committed code is what the .proto files say.

use std::{fs, path::Path};

#[path = "../generate.rs"]
mod generate;

use generate::generate;

#[test]
fn the_committed_code_is_the_generated_one() {
    let folder = tempfile::tempdir().unwrap();
    generate(folder.path()).unwrap();
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/generated");
    let names = |folder: &Path| {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(folder.path()), names(&committed), "run script/build-proto");
    for name in names(folder.path()) {
        let generated = fs::read_to_string(folder.path().join(&name)).unwrap();
        let committed = fs::read_to_string(committed.join(&name)).unwrap();
        assert!(
            generated == committed,
            "{} is not what is committed: run script/build-proto",
            name.display()
        );
    }
}
