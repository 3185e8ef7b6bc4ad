// The page: logs in, shows what is known of a run, and keeps it up to date.

import { ALL, Refused, choose, getRun, isOfAll, listen, post } from './api.js';
import { Controls } from './controls.js';
import { Curves } from './curves.js';
import { byId, duration, h, integer, number, visible } from './dom.js';
import { Evaluation } from './evaluation.js';
import { Pipeline } from './pipeline.js';
import { Rollouts } from './rollouts.js';

const VIEWS = ['curves', 'pipeline', 'rollouts', 'evaluation', 'events'];

const curves = new Curves();
const pipeline = new Pipeline();
const rollouts = new Rollouts();
const evaluation = new Evaluation();
const controls = new Controls(tell);
let known = null;
let looked = null;
let isConnected = true;
let isLoggedOut = false;

/** A word on the page that can be closed. One that says the same is not shown twice. */
function tell(text, isProblem = false) {
  const banners = byId('banners');
  const shown = h('span', { dir: 'auto' }, visible(text));
  if ([...banners.children].some((banner) => banner.firstChild.textContent === shown.textContent)) return;
  const banner = h('div', { class: isProblem ? 'banner problem' : 'banner', role: isProblem ? 'alert' : 'status' },
    shown,
    h('button', { type: 'button', 'aria-label': 'Close', onclick: () => banner.remove() }, '×'));
  banners.append(banner);
  if (!isProblem) setTimeout(() => banner.remove(), 6000);
}

function sentence(event) {
  switch (event.event) {
    case 'warning': return event.message;
    case 'restarted': return `${event.role.role}-${event.role.idx} failed and was started again: ${event.error}`;
    case 'changed': {
      const changes = event.changes.flatMap((change) => Object.entries(change));
      const shown = (value) => (typeof value === 'number' ? number(value) : `${value.dir} (weights ${value.weights})`);
      return `Changed from the update of v${event.version} on: ${changes.map(([key, value]) => `${key} = ${shown(value)}`).join(', ')}`;
    }
    case 'replacing': return `The reward model ${event.reward_model.dir} (weights ${event.reward_model.weights}) gives the scores from the update of v${event.version} on; until then the flow runs dry`;
    case 'paused': return 'Paused';
    case 'resumed': return 'Went on after a pause';
    case 'checkpointed': return `Checkpoint of v${event.version}`;
    case 'stopping': return 'Told to stop';
    case 'ended': return event.stopped ? `Stopped at v${event.version}` : `Ended at v${event.version}`;
    case 'failed': return `The run failed: ${event.role.role}-${event.role.idx}: ${event.error}`;
    default: return event.event;
  }
}

const isBad = (event) => event.event === 'warning' || event.event === 'failed';

function showEvents() {
  const rows = known.events.toReversed().map((event) => h('li', { class: isBad(event) ? 'bad' : '' },
    h('time', { datetime: new Date(event.at_s * 1000).toISOString() }, new Date(event.at_s * 1000).toLocaleString()),
    h('span', { class: 'muted' }, `v${event.updates}`),
    h('span', { dir: 'auto' }, visible(sentence(event)))));
  byId('events').replaceChildren(h('h2', {}, 'Events'),
    rows.length ? h('ol', { class: 'event-list' }, rows) : h('p', { class: 'empty' }, 'Nothing has happened besides updates.'));
}

function showState() {
  const { status, is_live: isLive, stage } = known;
  const version = known.last?.[0] ?? status?.version ?? 0;
  const total = status?.n_updates ?? known.settings?.n_updates ?? 0;
  let state = 'not begun';
  if (!isConnected) state = 'not connected';
  else if (status?.roles.some((role) => role.state === 'failed')) state = 'failed';
  else if (status?.has_ended) state = 'ended';
  else if (status?.roles.some((role) => role.state === 'paused')) state = 'paused';
  else if (stage && stage !== 'ppo') state = `stage: ${stage}`;
  else if (isLive) state = status ? 'running' : 'starting';
  else if (status) state = 'gone without an end';
  const pill = byId('state');
  if (pill.textContent !== state) pill.textContent = state;
  pill.dataset.state = state.split(' ')[0];
  byId('progress-text').textContent = total ? `${integer(version)} of ${integer(total)} updates${status ? `, ${duration(status.elapsed_s)}` : ''}` : '';
  const progress = byId('progress');
  progress.max = Math.max(1, total);
  progress.value = version;
}

/** Whether a round is looked at of which messages do not tell. */
const isElsewhere = (run) => run.round !== run.followed;

function showRounds(run) {
  const { rounds, round, followed } = run;
  const name = ({ round: n, has_ppo: hasPpo }) => (hasPpo ? `${n}` : `${n} (before PPO)`);
  // The one that is followed has no number of its own: another may be, later.
  const options = rounds.map((row) => h('option', { value: row.round === followed ? '' : row.round }, name(row)));
  if (followed === null) options.unshift(h('option', { value: '' }, '–'));
  if (rounds.length > 0) options.push(h('option', { value: ALL }, 'all rounds'));
  const select = byId('round');
  select.replaceChildren(...options);
  if (run.all) select.value = ALL;
  else select.value = isElsewhere(run) ? round : '';
  byId('rounds').hidden = rounds.length === 0;
  if (!isElsewhere(run) && !run.all) choose(null);
}

/** Asks for the run that is chosen, and shows it. One that goes on no more is not shown anew under a reader's eyes. */
async function look() {
  const asked = (looked = {});
  const run = await getRun();
  if (asked !== looked) return;
  if (isElsewhere(run) && run.root === known.root) {
    known.followed = run.followed;
    showRounds(run);
    return;
  }
  await show(run);
}

async function show(run) {
  known = run;
  isConnected = true;
  document.title = `${run.name} · Collimate`;
  byId('name').textContent = run.name;
  byId('name').title = run.root;
  showRounds(run);
  if (run.problem) tell(run.problem, true);
  run.events.filter(isBad).slice(-3).forEach((event) => tell(sentence(event), true));
  showState();
  showEvents();
  controls.begin(run);
  pipeline.begin(run);
  rollouts.begin(run);
  evaluation.begin(run);
  route();
  await curves.begin(run);
}

function heard(message) {
  if (isElsewhere(known) && message.kind !== 'reset') return;
  switch (message.kind) {
    case 'updated':
      known.last = message.at;
      curves.updated(message);
      pipeline.updated(message);
      rollouts.updated();
      showState();
      break;
    case 'status':
      known.status = message.status ?? known.status;
      known.is_live = message.is_live;
      pipeline.show(known.status, known.is_live);
      controls.show(known.status);
      showState();
      break;
    case 'event': {
      const { kind: _, ...event } = message;
      known.events.push(event);
      controls.happened(event);
      showEvents();
      if (isBad(event)) tell(sentence(event), true);
      else if (event.event === 'changed' || event.event === 'replacing' || controls.hasAskedFor(event)) tell(sentence(event));
      break;
    }
    case 'stage':
      known.stage = message.stage;
      known.is_live = true;
      showState();
      break;
    case 'commandable':
      controls.setCommandable(message.is_commandable);
      break;
    case 'reset':
      look().catch(() => {});
      break;
    default:
  }
}

/** Where all rounds are chosen: only their curves are drawn as one. */
function noteRound(view) {
  const note = byId('round-note');
  note.hidden = !isOfAll() || view === 'curves';
  const shown = known?.followed ? `round ${known.followed}` : 'the run that is followed';
  note.textContent = note.hidden ? '' : `All rounds together are under Curves alone: here is ${shown}.`;
}

function route() {
  const view = VIEWS.includes(location.hash.slice(1)) ? location.hash.slice(1) : VIEWS[0];
  noteRound(view);
  byId('login').hidden = !isLoggedOut;
  for (const name of VIEWS) byId(name).hidden = isLoggedOut || name !== view;
  for (const link of document.querySelectorAll('nav a')) {
    if (link.hash === `#${view}`) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  curves.draw();
  pipeline.draw();
  rollouts.draw();
  evaluation.draw();
}

function logOut() {
  isLoggedOut = true;
  byId('state').textContent = 'not logged in';
  byId('state').dataset.state = 'not';
  route();
}

async function logIn(text) {
  const token = text.trim().replace(/^.*#token=/, '');
  await post('login', { token });
  isLoggedOut = false;
}

async function start() {
  const run = await getRun();
  await show(run);
  listen(run.id, {
    onMessage: heard,
    onState: (connected) => {
      isConnected = connected;
      showState();
    },
    onBack: (again) => (again ? show(again) : logOut()),
  });
}

byId('login-form').addEventListener('submit', async (event) => {
  event.preventDefault();
  try {
    await logIn(byId('login-token').value);
    byId('login-problem').textContent = '';
    byId('login-token').value = '';
    await start();
  } catch (error) {
    byId('login-problem').textContent = error.message;
  }
});

byId('round').addEventListener('change', () => {
  choose(byId('round').value || null);
  look().catch((error) => tell(error.message, true));
});

// Anchors of the page's own: the skip link goes to the content, and the view stays.
document.querySelector('.skip').addEventListener('click', (event) => {
  event.preventDefault();
  byId('main').focus();
});
addEventListener('hashchange', route);

try {
  if (location.hash.startsWith('#token=')) {
    const token = location.hash;
    // The secret is not left in the address bar, nor in the history.
    history.replaceState(null, '', `${location.pathname}#curves`);
    await logIn(token);
  }
  await start();
} catch (error) {
  if (error instanceof Refused && error.status === 401) logOut();
  else tell(error.message, true);
}
