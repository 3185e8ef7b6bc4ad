//! The files of the page.

use crate::web::{Asset, Assets};

macro_rules! assets {
    ($($path:literal => $file:literal),* $(,)?) => {
        Assets(&[$(Asset { path: $path, text: include_str!(concat!("../page/", $file)) }),*])
    };
}

/// All of them.
pub const FILES: Assets = assets! {
    "/" => "index.html",
    "/login" => "login.html",
    "/overview" => "overview.html",
    "/disagreements" => "disagreements.html",
    "/settle" => "settle.html",
    "/people" => "people.html",
    "/effect" => "effect.html",
    "/style/base.css" => "style/base.css",
    "/style/task.css" => "style/task.css",
    "/style/ranking.css" => "style/ranking.css",
    "/style/overview.css" => "style/overview.css",
    "/style/settle.css" => "style/settle.css",
    "/style/effects.css" => "style/effects.css",
    "/script/api.js" => "script/api.js",
    "/script/dom.js" => "script/dom.js",
    "/script/dialogs.js" => "script/dialogs.js",
    "/script/text.js" => "script/text.js",
    "/script/keys.js" => "script/keys.js",
    "/script/drag.js" => "script/drag.js",
    "/script/ranking.js" => "script/ranking.js",
    "/script/form.js" => "script/form.js",
    "/script/responses.js" => "script/responses.js",
    "/script/saving.js" => "script/saving.js",
    "/script/steering.js" => "script/steering.js",
    "/script/label.js" => "script/label.js",
    "/script/login.js" => "script/login.js",
    "/script/overview.js" => "script/overview.js",
    "/script/differences.js" => "script/differences.js",
    "/script/disagreements.js" => "script/disagreements.js",
    "/script/settle.js" => "script/settle.js",
    "/script/people.js" => "script/people.js",
    "/script/effect.js" => "script/effect.js",
    "/script/lines.js" => "script/lines.js",
    "/script/words.js" => "script/words.js",
    "/icon.svg" => "icon.svg",
};
