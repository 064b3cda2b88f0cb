//! A headless Chromium of our own, driven by chromedriver.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use fantoccini::{Client, ClientBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tempfile::TempDir;

/// How long the page may take for anything: much, as the machine may be busy. What is waited for is a condition.
const PATIENCE: Duration = Duration::from_mins(1);

/// A browser with one window. Its files are gone with it.
pub(crate) struct Browser {
    pub(crate) client: Client,
    session: String,
    driver: Driver,
    files: TempDir,
}

struct Driver {
    process: Child,
    address: String,
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Driver {
    fn start() -> Driver {
        let mut process = Command::new("chromedriver")
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver does not start; on Debian: apt-get install chromium chromium-driver");
        let output = process.stdout.take().expect("the output is piped");
        let port = BufReader::new(output)
            .lines()
            .map_while(Result::ok)
            .find_map(|line| line.split_once("successfully on port ")?.1.trim_end_matches('.').parse().ok())
            .unwrap_or_else(|| panic!("chromedriver names no port"));
        let port: u16 = port;
        Driver { process, address: format!("http://127.0.0.1:{port}") }
    }
}

impl Browser {
    /// A window of this size, in CSS pixels.
    pub(crate) async fn open(width: u32, height: u32) -> Browser {
        let driver = Driver::start();
        let files = tempfile::tempdir().expect("a folder for the browser");
        let arguments = [
            "--headless".to_owned(),
            // The tests run as root, in a container perhaps.
            "--no-sandbox".into(),
            "--disable-gpu".into(),
            "--disable-dev-shm-usage".into(),
            "--disable-background-networking".into(),
            "--no-first-run".into(),
            format!("--user-data-dir={}", files.path().join("profile").display()),
            format!("--window-size={width},{height}"),
        ];
        let capabilities = json!({
            "goog:loggingPrefs": {"browser": "ALL"},
            "goog:chromeOptions": {
                "args": arguments,
                "prefs": {"download.default_directory": files.path(), "download.prompt_for_download": false},
            },
        });
        let capabilities = capabilities.as_object().expect("an object").clone();
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities)
            .connect(&driver.address)
            .await
            .expect("a session with Chromium");
        let session = client.session_id().await.expect("an answer").expect("an id of the session");
        Browser { client, session, driver, files }
    }

    pub(crate) async fn go(&self, url: &str) {
        self.client.goto(url).await.unwrap_or_else(|error| panic!("cannot open {url}: {error}"));
    }

    /// What a piece of JavaScript returns.
    pub(crate) async fn eval(&self, script: &str) -> Value {
        self.client.execute(script, vec![]).await.unwrap_or_else(|error| panic!("{script}: {error}"))
    }

    pub(crate) async fn text(&self, script: &str) -> String {
        match self.eval(script).await {
            Value::String(text) => text,
            other => panic!("{script} is no text: {other}"),
        }
    }

    /// Waits until a piece of JavaScript returns what is wanted.
    pub(crate) async fn wait(&self, script: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let value = self.eval(script).await;
            if wanted(&value) {
                return value;
            }
            assert!(begun.elapsed() < PATIENCE, "{script} stays {value}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) async fn wait_true(&self, script: &str) {
        self.wait(script, |value| value == &Value::Bool(true)).await;
    }

    /// Types into a field, in place of what is there.
    pub(crate) async fn fill(&self, field: &str, text: &str) {
        let field = self.client.find(fantoccini::Locator::Css(field)).await.expect("the field");
        field.clear().await.expect("a field that can be cleared");
        field.send_keys(text).await.expect("a field to type into");
    }

    pub(crate) async fn click(&self, selector: &str) {
        let element = self.client.find(fantoccini::Locator::Css(selector)).await;
        let element = element.unwrap_or_else(|error| panic!("no {selector}: {error}"));
        element.click().await.unwrap_or_else(|error| panic!("{selector} cannot be clicked: {error}"));
    }

    /// Folder that downloads go to.
    pub(crate) fn downloads(&self) -> &Path {
        self.files.path()
    }

    /// Tells the browser what its protocol for developers can tell it.
    pub(crate) fn devtools(&self, command: &str, parameters: &Value) {
        self.post("goog/cdp/execute", &json!({"cmd": command, "params": parameters}));
    }

    /// Ends the session. Nothing may have gone wrong in it: no violated policy, no uncaught error, no dialog.
    pub(crate) async fn close(self) {
        assert!(self.client.get_alert_text().await.is_err(), "a dialog is open");
        let log = self.post("se/log", &json!({"type": "browser"}));
        let log = log["value"].as_array().expect("a list").clone();
        self.client.close().await.expect("a clean end");
        let bad: Vec<_> = log
            .iter()
            .filter(|entry| {
                let message = entry["message"].as_str().unwrap_or_default();
                let expected = message.contains("/api/flamegraph") && message.contains("404");
                (entry["level"] == "SEVERE" && !expected) || message.contains("Content Security Policy")
            })
            .collect();
        assert!(bad.is_empty(), "the browser complains: {bad:#?}");
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        let url = format!("{}/session/{}/{path}", self.driver.address, self.session);
        let mut answer = ureq::post(&url).send(body.to_string()).expect("an answer of chromedriver");
        let text = answer.body_mut().read_to_string().expect("text");
        serde_json::from_str(&text).expect("JSON")
    }
}
