// A link's token stands behind `#`, which browsers send to nobody. It becomes a session, and leaves the address bar.

import { ask } from "./api.js";
import { byId } from "./dom.js";

const token = location.hash.slice(1);
history.replaceState(null, "", "/login");

try {
  if (!token) throw new Error("This page is opened by a link of your own. Ask who runs the project for one.");
  const who = await ask("/api/login", { token });
  location.replace(who.is_admin ? "/overview" : "/");
} catch (error) {
  byId("told").textContent = error.message;
}
