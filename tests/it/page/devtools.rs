//! A headless Chromium, driven through the pipe of its `DevTools` protocol.

use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

/// The names of Chromium, and of a browser like it.
const NAMES: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];
/// The most that a test waits for an answer of the browser.
const WAIT_MAX: Duration = Duration::from_secs(90);

/// A browser with one tab.
pub struct Browser {
    /// Ends the browser when it is dropped.
    _child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    session: String,
    last_id: u64,
    /// What the browser reported since the last page: blocked content and errors.
    pub complaints: Vec<String>,
    _profile: TempDir,
}

/// How a page is shown.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    pub width: u32,
    pub is_dark: bool,
}

impl Browser {
    /// Starts a browser. `None`: there is none on this machine.
    pub async fn start() -> Option<Self> {
        let mut runs = None;
        for name in NAMES {
            let version = Command::new(name).arg("--version").output().await;
            if version.is_ok_and(|version| version.status.success()) {
                runs = Some(name);
                break;
            }
        }
        let name = runs?;
        let profile = tempfile::tempdir().unwrap();
        // The browser reads commands from descriptor 3 and writes answers to descriptor 4.
        let mut child = Command::new("sh")
            .args(["-c", "exec \"$@\" 3<&0 4>&1 0</dev/null 1>&2", "sh", name])
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .args(["--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut browser = Self {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()),
            _child: child,
            session: String::new(),
            last_id: 0,
            complaints: Vec::new(),
            _profile: profile,
        };
        let tab = browser.ask("Target.createTarget", json!({ "url": "about:blank" })).await;
        let tab = json!({ "targetId": tab["targetId"], "flatten": true });
        let attached = browser.ask("Target.attachToTarget", tab).await;
        browser.session = attached["sessionId"].as_str().unwrap().to_owned();
        for domain in ["Page.enable", "Log.enable", "Network.enable", "Audits.enable"] {
            browser.ask(domain, json!({})).await;
        }
        Some(browser)
    }

    /// Opens a page, and waits until it is loaded.
    pub async fn open(&mut self, url: &str, screen: Screen) {
        let Screen { width, is_dark } = screen;
        let metrics = json!({ "width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.ask("Emulation.setDeviceMetricsOverride", metrics).await;
        let scheme = if is_dark { "dark" } else { "light" };
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.ask("Emulation.setEmulatedMedia", media).await;
        self.complaints.clear();
        let opened = self.ask("Page.navigate", json!({ "url": url })).await;
        assert!(opened["errorText"].is_null(), "{url}: {opened}");
        while self.next().await["method"] != "Page.loadEventFired" {}
    }

    /// Returns the width of the viewport and of the whole page.
    pub async fn widths(&mut self) -> (i64, i64) {
        let width = "document.documentElement";
        let widths = self.value(&format!("[{width}.clientWidth, {width}.scrollWidth]")).await;
        (widths[0].as_i64().unwrap(), widths[1].as_i64().unwrap())
    }

    /// Returns the value of an expression of the page.
    pub async fn value(&mut self, expression: &str) -> Value {
        let wanted = json!({ "expression": expression, "returnByValue": true });
        let answer = self.ask("Runtime.evaluate", wanted).await;
        assert!(answer["exceptionDetails"].is_null(), "{answer}");
        answer["result"]["value"].clone()
    }

    /// Returns a picture of the page from its top, as PNG.
    pub async fn picture(&mut self, height: u32, screen: Screen) -> Vec<u8> {
        let clip = json!({ "x": 0, "y": 0, "width": screen.width, "height": height, "scale": 1 });
        let wanted = json!({ "format": "png", "captureBeyondViewport": true, "clip": clip });
        let picture = self.ask("Page.captureScreenshot", wanted).await;
        STANDARD.decode(picture["data"].as_str().unwrap()).unwrap()
    }

    async fn ask(&mut self, method: &str, parameters: Value) -> Value {
        self.last_id += 1;
        let mut command = json!({ "id": self.last_id, "method": method, "params": parameters });
        if !self.session.is_empty() {
            command["sessionId"] = json!(self.session);
        }
        self.input.write_all(format!("{command}\0").as_bytes()).await.unwrap();
        loop {
            let answer = self.next().await;
            if answer["id"] == self.last_id {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].clone();
            }
        }
    }

    async fn next(&mut self) -> Value {
        let mut message = Vec::new();
        let read = timeout(WAIT_MAX, self.output.read_until(0, &mut message)).await;
        assert!(
            read.unwrap_or_else(|_| panic!("the browser does not answer")).unwrap() > 0,
            "the browser has ended"
        );
        let message: Value = serde_json::from_slice(&message[..message.len() - 1]).unwrap();
        let is_complaint = match message["method"].as_str() {
            Some("Log.entryAdded" | "Audits.issueAdded") => true,
            Some("Network.requestWillBeSent") => message["params"]["type"] != "Document",
            _ => false,
        };
        if is_complaint {
            self.complaints.push(message["params"].to_string());
        }
        message
    }
}
