//! Chromium, driven over WebDriver.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};

/// Set where a missing browser is a failure: by what runs all tests.
const IS_REQUIRED: &str = "COLLIMATE_BROWSER_REQUIRED";

/// A browser with one window, and its driver.
pub struct Chromium {
    driver: Child,
    /// The window.
    pub client: Client,
    _profile: tempfile::TempDir,
}

/// How a window looks at a page.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Whether the system is dark.
    pub is_dark: bool,
}

/// Each width and each of light and dark.
pub const LOOKS: [Look; 4] = [
    Look { width: 1280, height: 900, is_dark: false },
    Look { width: 1280, height: 900, is_dark: true },
    Look { width: 390, height: 844, is_dark: false },
    Look { width: 390, height: 844, is_dark: true },
];

impl Chromium {
    /// Starts it; `None`, with a word, where there is none and none is required.
    pub async fn start() -> Option<Self> {
        let Some(mut driver) = driver() else {
            let how = "tests/scripts/browser_setup.sh installs chromium and chromedriver";
            assert!(std::env::var_os(IS_REQUIRED).is_none(), "there is no chromedriver: {how}");
            println!("SKIPPED: there is no chromedriver; {how}");
            return None;
        };
        let mut told = BufReader::new(driver.stdout.take().expect("it is piped")).lines();
        let port = told.by_ref().map_while(Result::ok).find_map(|line| {
            line.strip_prefix("ChromeDriver was started successfully on port ")?
                .trim_end_matches('.')
                .parse::<u16>()
                .ok()
        });
        let port = port.expect("chromedriver tells its port");
        // What it tells later is read, so that it can go on telling.
        std::thread::spawn(move || told.for_each(drop));
        let profile = tempfile::tempdir().expect("a temporary folder");
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
        ];
        let mut arguments: Vec<String> = arguments.map(str::to_owned).into();
        arguments.push(format!("--user-data-dir={}", profile.path().display()));
        let mut capabilities = serde_json::Map::new();
        capabilities.insert("goog:chromeOptions".into(), json!({ "args": arguments }));
        capabilities.insert("goog:loggingPrefs".into(), json!({ "browser": "ALL" }));
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities)
            .connect(&format!("http://127.0.0.1:{port}"))
            .await
            .expect("chromium starts");
        Some(Self { driver, client, _profile: profile })
    }

    /// Opens a page.
    pub async fn open(&self, url: &str) {
        self.client.goto(url).await.expect("the page opens");
    }

    /// Runs a script; what it returns.
    pub async fn run(&self, script: &str) -> Value {
        self.client.execute(script, Vec::new()).await.unwrap_or_else(|error| panic!("{script}: {error}"))
    }

    /// Waits until an expression is true.
    pub async fn until(&self, expression: &str) {
        let script = format!(
            "const done = arguments[0], since = performance.now(); \
             (function look() {{ let it = false; try {{ it = {expression}; }} catch {{}} \
             if (it || performance.now() - since > 25000) done(Boolean(it)); else setTimeout(look, 25); }})();"
        );
        let is_true = self.client.execute_async(&script, Vec::new()).await.expect("the script runs");
        assert_eq!(is_true, true, "not within 25 s: {expression}\n{}", self.text().await);
    }

    /// Clicks on the first element that fits a selector.
    pub async fn click(&self, selector: &str) {
        let element = self.client.find(Locator::Css(selector)).await;
        element.unwrap_or_else(|error| panic!("{selector}: {error}")).click().await.expect("it can be clicked");
    }

    /// Types into the first element that fits a selector.
    pub async fn type_into(&self, selector: &str, text: &str) {
        let element = self.client.find(Locator::Css(selector)).await.expect("it is there");
        element.send_keys(text).await.expect("it takes text");
    }

    /// The page's text as one sees it.
    pub async fn text(&self) -> String {
        self.run("return document.body.innerText").await.as_str().unwrap_or_default().to_owned()
    }

    /// Looks at the page in another way.
    pub async fn look(&self, look: Look) {
        let scheme = if look.is_dark { "dark" } else { "light" };
        self.cdp(
            "Emulation.setEmulatedMedia",
            json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]}),
        )
        .await;
        let metrics =
            json!({"width": look.width, "height": look.height, "deviceScaleFactor": 1, "mobile": look.width < 500});
        self.cdp("Emulation.setDeviceMetricsOverride", metrics).await;
    }

    async fn cdp(&self, command: &str, parameters: Value) {
        let cdp = Cdp { command: command.to_owned(), parameters };
        self.client.issue_cmd(cdp).await.expect("chromium takes the command");
    }

    /// Writes a picture of the window, for a person to look at, to `target/screenshots`.
    pub async fn picture(&self, name: &str) -> PathBuf {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/screenshots");
        std::fs::create_dir_all(&folder).expect("a folder");
        let path = folder.join(format!("{name}.png"));
        let picture = self.client.screenshot().await.expect("a picture");
        std::fs::write(&path, picture).expect("room for it");
        path
    }

    /// What axe-core finds seriously wrong with the page, one line each. `None`, with a word, where axe-core is not there
    /// and not required.
    pub async fn accessibility_problems(&self) -> Option<Vec<String>> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("browser/axe.min.js");
        let Ok(axe) = std::fs::read_to_string(&path) else {
            assert!(std::env::var_os(IS_REQUIRED).is_none(), "{} is not there", path.display());
            println!("SKIPPED: {} is not there; tests/scripts/browser_setup.sh fetches it", path.display());
            return None;
        };
        self.run(&axe).await;
        let script = "const done = arguments[0]; axe.run(document, {resultTypes: ['violations']}).then((found) => done(
            found.violations.filter((violation) => ['serious', 'critical'].includes(violation.impact)).map((violation) =>
                `${violation.id}: ${violation.help}: ` + violation.nodes.slice(0, 4).map((node) =>
                    `${node.target.join(' ')} (${node.any.concat(node.all).map((check) => check.message).join('; ')})`).join(' | '))),
            (error) => done([String(error)]));";
        let found = self.client.execute_async(script, Vec::new()).await.expect("axe-core runs");
        Some(serde_json::from_value(found).expect("lines"))
    }

    /// Closes it.
    pub async fn close(self) {
        // The driver is killed with it in any case.
        let _ = self.client.clone().close().await;
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

fn driver() -> Option<Child> {
    let mut command = Command::new("chromedriver");
    command.arg("--port=0").stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()
}

/// A command of the Chrome DevTools protocol.
#[derive(Debug)]
struct Cdp {
    command: String,
    parameters: Value,
}

impl fantoccini::wd::WebDriverCompatibleCommand for Cdp {
    fn endpoint(&self, base: &url::Url, session: Option<&str>) -> Result<url::Url, url::ParseError> {
        base.join(&format!("session/{}/goog/cdp/execute", session.unwrap_or_default()))
    }

    fn method_and_body(&self, _: &url::Url) -> (http::Method, Option<String>) {
        (http::Method::POST, Some(json!({"cmd": self.command, "params": self.parameters}).to_string()))
    }
}
