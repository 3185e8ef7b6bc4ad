//! A real browser: Debian's chromium, by its driver. `tests/scripts/browser_setup.sh` installs it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fantoccini::actions::{Actions, InputSource, MOUSE_BUTTON_LEFT, MouseActions, PointerAction, TouchActions};
use fantoccini::elements::Element;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};

/// Set where a browser must be there, so that its absence is a failure and no reason to skip.
const REQUIRED: &str = "COLLIMATE_BROWSER_REQUIRED";
/// Attempts on an element that the page draws anew.
const N_CLICKS: usize = 5;
/// How long something may take to appear.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a pointer takes over each part of its way.
const STROKE: Duration = Duration::from_millis(20);

/// How the page is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Width and height: CSS pixels.
    pub size: (u32, u32),
    /// Whether the system's colours are dark.
    pub is_dark: bool,
    /// Whether it is touched, and not pointed at.
    pub is_touched: bool,
}

impl Look {
    /// A desk.
    pub const WIDE: Self = Self { size: (1280, 900), is_dark: false, is_touched: false };
    /// As wide as a phone.
    pub const NARROW: Self = Self { size: (390, 844), is_dark: false, is_touched: false };
    /// A phone.
    pub const PHONE: Self = Self { is_touched: true, ..Self::NARROW };

    /// The same with dark colours.
    pub const fn dark(self) -> Self {
        Self { is_dark: true, ..self }
    }
}

/// Whether there is a browser to test with. Where there is none, says so.
///
/// # Panics
/// Where there has to be one.
pub fn is_there() -> bool {
    let missing = ["chromium", "chromedriver"].into_iter().find(|name| find(name).is_none());
    let missing = missing.map(str::to_owned).or_else(|| (!axe().exists()).then(|| axe().display().to_string()));
    let Some(missing) = missing else { return true };
    let told = format!("no browser to test with: {missing} is missing; tests/scripts/browser_setup.sh installs it");
    assert!(std::env::var_os(REQUIRED).is_none(), "{told}");
    eprintln!("skipped: {told}");
    false
}

fn find(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(name)).find(|path| path.is_file())
}

fn axe() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("browser/axe.min.js")
}

/// One browser with its driver, until it is dropped.
pub struct Browser {
    /// The page.
    pub client: Client,
    driver: Child,
    // It holds the browser's profile, and goes last.
    _profile: tempfile::TempDir,
}

impl Browser {
    /// A fresh one, without any history.
    pub async fn open(look: Look) -> Self {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver starts");
        let mut lines = BufReader::new(driver.stdout.take().expect("a pipe")).lines().map_while(Result::ok);
        let port = lines.find_map(|line| {
            let port = line.strip_prefix("ChromeDriver was started successfully on port ")?;
            port.trim_end_matches('.').parse::<u16>().ok()
        });
        let port = port.expect("chromedriver says its port");
        std::thread::spawn(move || lines.for_each(drop));
        let profile = tempfile::tempdir().expect("a folder");
        let mut arguments: Vec<String> = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--force-prefers-reduced-motion",
        ]
        .map(str::to_owned)
        .to_vec();
        let (width, height) = look.size;
        arguments.push(format!("--user-data-dir={}", profile.path().display()));
        arguments.push(format!("--window-size={width},{height}"));
        arguments.push(format!("--blink-settings=preferredColorScheme={}", u8::from(!look.is_dark)));
        let metrics = json!({
            "width": width, "height": height, "pixelRatio": 1.0, "touch": look.is_touched, "mobile": false,
        });
        let options = json!({ "args": arguments, "mobileEmulation": { "deviceMetrics": metrics } });
        let capabilities = serde_json::Map::from_iter([("goog:chromeOptions".to_owned(), options)]);
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities)
            .connect(&format!("http://127.0.0.1:{port}"))
            .await
            .expect("a browser");
        let browser = Self { client, driver, _profile: profile };
        let is_dark = browser.run("return matchMedia('(prefers-color-scheme: dark)').matches").await;
        assert_eq!(is_dark, json!(look.is_dark), "the colours that were asked for");
        assert_eq!(browser.run("return innerWidth").await, json!(width), "the width that was asked for");
        browser
    }

    /// Goes to an address.
    pub async fn go(&self, url: &str) {
        self.client.goto(url).await.unwrap_or_else(|error| panic!("{url}: {error}"));
    }

    /// Runs a script in the page.
    pub async fn run(&self, script: &str) -> Value {
        self.client.execute(script, Vec::new()).await.unwrap_or_else(|error| panic!("{script}: {error}"))
    }

    /// The first element of this selector, when it is there.
    pub async fn find(&self, css: &str) -> Element {
        let found = self.client.wait().at_most(PATIENCE).for_element(Locator::Css(css)).await;
        found.unwrap_or_else(|error| panic!("{css}: {error}"))
    }

    /// Waits until a script gives true.
    pub async fn until(&self, script: &str) {
        let began = std::time::Instant::now();
        while self.run(script).await != json!(true) {
            if began.elapsed() > PATIENCE {
                let text = self.run("return document.body.innerText").await;
                panic!("never: {script}; the page says: {text}");
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// Waits until the page says this somewhere.
    pub async fn says(&self, text: &str) {
        self.until(&format!("return document.body.innerText.includes({})", json!(text))).await;
    }

    /// Clicks on an element, in the middle of the screen if it can be.
    pub async fn click(&self, css: &str) {
        self.find(css).await;
        self.run(&format!("document.querySelector({}).scrollIntoView({{ block: 'center' }})", json!(css))).await;
        // A page that is drawn anew in between takes the element along.
        let mut clicked = self.find(css).await.click().await;
        for _ in 0..N_CLICKS {
            match &clicked {
                Err(error) if error.to_string().contains("stale element") => {
                    clicked = self.find(css).await.click().await
                }
                _ => break,
            }
        }
        clicked.unwrap_or_else(|error| panic!("{css}: {error}"));
    }

    /// Presses keys wherever the focus is.
    pub async fn press(&self, keys: &str) {
        let focused = self.client.active_element().await.expect("something in focus");
        focused.send_keys(keys).await.unwrap_or_else(|error| panic!("{keys:?}: {error}"));
    }

    /// Drags one element onto another by the mouse.
    pub async fn drag(&self, from: &str, to: &str) {
        let way = drag(self.find(from).await, &[], self.find(to).await);
        let mouse = way.into_iter().fold(MouseActions::new("mouse".to_owned()), |mouse, action| mouse.then(action));
        self.perform(mouse).await;
    }

    /// Drags one element onto another by a finger.
    pub async fn drag_by_finger(&self, from: &str, to: &str) {
        self.touch(drag(self.find(from).await, &[], self.find(to).await)).await;
    }

    /// The same by a finger that is held for so long at a point of the screen on its way.
    pub async fn drag_by_finger_and_hold(&self, from: &str, at: (f64, f64), held: Duration, to: &str) {
        let (x, y) = at;
        let hold = [PointerAction::MoveTo { duration: Some(STROKE), x, y }, PointerAction::Pause { duration: held }];
        self.touch(drag(self.find(from).await, &hold, self.find(to).await)).await;
    }

    /// Swipes with a finger that is put down on an element, so far to the right and down.
    pub async fn swipe(&self, from: &str, (x, y): (f64, f64)) {
        let stroke = |(x, y): (f64, f64)| PointerAction::MoveBy { duration: Some(STROKE), x, y };
        let begun = ((x / 4.0).round(), (y / 4.0).round());
        let way = [
            onto(self.find(from).await),
            PointerAction::Down { button: MOUSE_BUTTON_LEFT },
            stroke(begun),
            stroke((x - begun.0, y - begun.1)),
            PointerAction::Up { button: MOUSE_BUTTON_LEFT },
        ];
        self.touch(way.into()).await;
    }

    async fn touch(&self, way: Vec<PointerAction>) {
        let finger = way.into_iter().fold(TouchActions::new("finger".to_owned()), |finger, action| finger.then(action));
        self.perform(finger).await;
    }

    async fn perform(&self, actions: impl Into<Actions>) {
        self.client.perform_actions(actions).await.expect("a pointer that moves");
        self.client.release_actions().await.expect("a pointer that is lifted");
    }

    /// What axe-core finds on the page that is serious or worse.
    pub async fn serious_violations(&self) -> Vec<String> {
        let axe = std::fs::read_to_string(axe()).expect("axe-core");
        self.run(&axe).await;
        let script = "const done = arguments[arguments.length - 1];
            axe.run(document, { resultTypes: ['violations'] }).then(
                ({ violations }) => done(violations.filter(({ impact }) => ['serious', 'critical'].includes(impact)).map(
                    ({ id, nodes }) => `${id}: ${nodes.map(({ html, any }) => `${html} ${any.map(({ message }) => message)}`).join('; ')}`)),
                (error) => done([`axe failed: ${error}`]));";
        let found = self.client.execute_async(script, Vec::new()).await.expect("axe runs");
        serde_json::from_value(found).expect("a list of texts")
    }

    /// What is wrong with the page as it is seen, each told with its name: it is wider than the screen, or has a serious
    /// fault of accessibility. A picture of it is kept.
    pub async fn faults(&self, name: &str) -> Vec<String> {
        self.screenshot(name).await;
        let mut faults = self.serious_violations().await;
        if self.run("return document.documentElement.scrollWidth > innerWidth").await == true {
            faults.push("wider than the screen".to_owned());
        }
        faults.into_iter().map(|fault| format!("{name}: {fault}")).collect()
    }

    /// Writes what is seen to `target/screenshots/NAME.png`.
    pub async fn screenshot(&self, name: &str) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/screenshots");
        std::fs::create_dir_all(&dir).expect("a folder");
        let png = self.client.screenshot().await.expect("a picture");
        std::fs::write(dir.join(format!("{name}.png")), png).expect("a file");
    }

    /// Closes the browser.
    pub async fn close(self) {
        // A browser that is gone already is closed.
        let _ = self.client.clone().close().await;
    }
}

fn onto(element: Element) -> PointerAction {
    PointerAction::MoveToElement { element, duration: Some(STROKE), x: 0.0, y: 0.0 }
}

/// From one element to another by this way.
fn drag(from: Element, by: &[PointerAction], to: Element) -> Vec<PointerAction> {
    // Farther than what is taken for a click.
    let off = PointerAction::MoveBy { duration: Some(STROKE), x: 12.0, y: 0.0 };
    let (down, up) =
        (PointerAction::Down { button: MOUSE_BUTTON_LEFT }, PointerAction::Up { button: MOUSE_BUTTON_LEFT });
    [[onto(from), down, off].as_slice(), by, &[onto(to), up]].concat()
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Where a test failed, the browser was not closed: ending its driver ends it.
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
