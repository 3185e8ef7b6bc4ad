// A link's token stands behind `#`, which browsers send to nobody. It becomes a session, and leaves the address bar.

import { ask } from "./api.js";
import { byId } from "./dom.js";

async function logIn() {
  const token = location.hash.slice(1);
  history.replaceState(null, "", "/login");
  try {
    if (!token) throw new Error("This page is opened by a link of your own. Ask who runs the project for one.");
    byId("told").textContent = "Opening your link…";
    const who = await ask("/api/login", { token });
    location.replace(who.is_admin ? "/overview" : "/");
  } catch (error) {
    byId("told").textContent = error.message;
  }
}

// A link that is opened while this page is open changes the part behind `#` alone.
addEventListener("hashchange", logIn);
await logIn();
