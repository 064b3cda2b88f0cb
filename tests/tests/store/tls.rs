//! Certificates and tokens.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use tests::certificates::Authority;

use super::*;

const TOKEN: &str = "a-token-of-this-test";

fn tls(authority: &Authority, expired: bool) -> StoreOptions {
    StoreOptions {
        identity: Some(authority.issue("localhost", expired)),
        token: Some(TOKEN.into()),
        ..StoreOptions::default()
    }
}

/// Waits until the page says that sending fails for this reason.
fn wait_said(system: &System, reason: &str) {
    wait_for(&format!("the page says: {reason}"), 60, || {
        let page = String::from_utf8(system.get("/").body).ok()?;
        page.contains(reason).then_some(())
    });
}

#[test]
fn over_tls_with_a_token_that_is_replaced() {
    let _alone = alone();
    let (journal, port, folder) = (Journal::default(), free_port(), tempfile::tempdir().unwrap());
    let authority = Authority::new();
    // The certificate is a link to elsewhere, as those of /etc/ssl/certs are.
    let elsewhere = tempfile::tempdir().unwrap();
    let real = publish(elsewhere.path(), "real.pem", &authority.pem());
    let ca = publish(folder.path(), "ca.pem", "");
    fs::remove_file(&ca).unwrap();
    std::os::unix::fs::symlink(real, &ca).unwrap();
    let token = publish(folder.path(), "token", &format!("{TOKEN}\n"));
    let store = Store::start(port, &tls(&authority, false), &journal);
    let system = system(port, &[&format!("--store-ca-file={ca}"), &format!("--bearer-token-file={token}")]);
    wait_arrived(&journal, 5);
    assert_eq!(journal.headers()[0]["authorization"], format!("Bearer {TOKEN}"));
    // The token is replaced on both sides, the store's first.
    journal.set_token("the-next-token-of-this-test");
    wait_said(&system, "UNAUTHENTICATED");
    publish(folder.path(), "token", "the-next-token-of-this-test");
    let before = journal.arrived().len();
    wait_arrived(&journal, before + 5);
    // The store gets a certificate of another authority, and then the uploader does.
    drop(store);
    let other = Authority::new();
    let options = StoreOptions { token: Some("the-next-token-of-this-test".into()), ..tls(&other, false) };
    let store = Store::start(port, &options, &journal);
    wait_said(&system, "certificate");
    publish(elsewhere.path(), "real.pem", &other.pem());
    let before = journal.arrived().len();
    wait_arrived(&journal, before + 5);
    drop(store);
    // One that was good once is not taken.
    let options = StoreOptions { token: options.token, ..tls(&other, true) };
    let _store = Store::start(port, &options, &journal);
    wait_said(&system, "xpired");
    let log = system.place().log("uploader");
    assert!(!log.contains(TOKEN) && !log.contains("the-next-token"), "{log}");
    let page = String::from_utf8(system.get("/").body).unwrap();
    assert!(!page.contains(TOKEN) && !page.contains("the-next-token"));
    assert_eq!(journal.problems(), [""; 0]);
}

#[test]
fn only_who_is_to_be_trusted_unless_nobody_is_asked() {
    let _alone = alone();
    let (journal, port) = (Journal::default(), free_port());
    let _store = Store::start(port, &StoreOptions { token: None, ..tls(&Authority::new(), false) }, &journal);
    {
        let system = system(port, &[]);
        wait_said(&system, "certificate");
        assert_eq!(journal.calls(), 0);
    }
    let _system = system(port, &["--insecure-skip-verify"]);
    wait_arrived(&journal, 3);
}

#[test]
fn a_store_that_asks_for_a_certificate() {
    let _alone = alone();
    let (journal, port, folder) = (Journal::default(), free_port(), tempfile::tempdir().unwrap());
    let (authority, clients) = (Authority::new(), Authority::new());
    let (certificate, key) = clients.issue("uploader", false);
    let ca = publish(folder.path(), "ca.pem", &authority.pem());
    let certificate = publish(folder.path(), "client.pem", &certificate);
    let key = publish(folder.path(), "key.pem", &key);
    let options = StoreOptions { client_ca: Some(clients.pem()), token: None, ..tls(&authority, false) };
    let _store = Store::start(port, &options, &journal);
    let ca = format!("--store-ca-file={ca}");
    {
        let system = system(port, &[&ca]);
        wait_said(&system, "has not taken profiles");
        assert_eq!(journal.calls(), 0);
    }
    let own = [format!("--store-client-certificate={certificate}"), format!("--store-client-key={key}")];
    let _system = system(port, &[&ca, &own[0], &own[1]]);
    wait_arrived(&journal, 3);
}

/// A server that notes what it is told, and does not answer.
#[test]
fn a_token_does_not_leave_in_plain_text() {
    let _alone = alone();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&heard);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let notes = Arc::clone(&notes);
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                let mut stream = stream;
                // Enough for a greeting of TLS, or for HTTP/2 with headers.
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    notes.lock().unwrap().extend_from_slice(&buffer[..length]);
                    if notes.lock().unwrap().len() > 100 {
                        break;
                    }
                }
            });
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let token = publish(folder.path(), "token", TOKEN);
    let _system = system(port, &["--insecure-skip-verify", &format!("--bearer-token-file={token}")]);
    wait_for("it says something", 30, || (heard.lock().unwrap().len() > 100).then_some(()));
    let heard = heard.lock().unwrap();
    // A record of TLS (RFC 8446, section 5.1): handshake.
    assert_eq!(heard[0], 0x16);
    assert!(!heard.windows(TOKEN.len()).any(|part| part == TOKEN.as_bytes()));
}

/// Passes connections on, as a proxy that is asked to (HTTP CONNECT), and counts them.
fn proxy(asked_for: Arc<Mutex<Vec<String>>>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && client.read(&mut byte).is_ok_and(|length| length == 1) {
                head.push(byte[0]);
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
            asked_for.lock().unwrap().push(head);
            let Ok(server) = TcpStream::connect(&target) else { continue };
            client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            for (mut from, mut to) in
                [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)]
            {
                thread::spawn(move || std::io::copy(&mut from, &mut to));
            }
        }
    });
    port
}

#[test]
fn through_a_proxy_of_the_environment() {
    let _alone = alone();
    let (journal, port, folder) = (Journal::default(), free_port(), tempfile::tempdir().unwrap());
    let authority = Authority::new();
    let ca = publish(folder.path(), "ca.pem", &authority.pem());
    let _store = Store::start(port, &StoreOptions { token: None, ..tls(&authority, false) }, &journal);
    let asked_for = Arc::new(Mutex::new(Vec::new()));
    let proxy = proxy(Arc::clone(&asked_for));
    let options = Options {
        window: "1s",
        uploader_environment: vec![format!("https_proxy=http://user:secret@127.0.0.1:{proxy}")],
        ..Options::default()
    };
    let ca = format!("--store-ca-file={ca}");
    let system = System::start_with(options, |place| store_flags(port, place, &[&ca]));
    wait_arrived(&journal, 3);
    let asked_for = asked_for.lock().unwrap();
    assert!(asked_for[0].starts_with(&format!("CONNECT localhost:{port} HTTP/1.1\r\n")), "{asked_for:?}");
    assert!(asked_for[0].contains("Basic dXNlcjpzZWNyZXQ="), "{asked_for:?}");
    assert!(!system.place().log("uploader").contains("secret"));
}

/// Names are looked up from within the sandbox. Nobody has this one (RFC 6761, section 6.4), whether a name server answers or not.
#[test]
fn a_name_that_nobody_knows() {
    let _alone = alone();
    let system = System::start_with(Options { window: "1s", ..Options::default() }, |place| {
        let mut flags = store_flags(443, place, &["--insecure-skip-verify"]);
        flags[0] = "--store-address=parca.invalid:443".into();
        flags
    });
    wait_said(&system, "cannot look up parca.invalid");
    assert_eq!(system.get("/readyz").status, 200);
}
