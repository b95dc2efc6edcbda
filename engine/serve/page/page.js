// The service's page: a photo and what is wanted of it, sent to /maps; the answer shown.
import { byId, make, percent } from './dom.js';
import { cssColour } from './maps.js';
import { bytesOf, decodePng } from './png.js';
import { showSteps } from './steps.js';
import { Viewer } from './viewer.js';

const SHOWN_SCORES = 8;
const viewer = new Viewer();
const state = { bundles: [], file: null, url: null, chosen: new Set(), asked: null };

const bundle = () => state.bundles.find((one) => one.name === byId('bundle').value) ?? state.bundles[0];
const fail = (text) => { byId('error').textContent = text; };

// -- what can be asked for ------------------------------------------------------------------------------------------

async function start() {
  const { bundles } = await json(await fetch('/info'));
  state.bundles = bundles;
  byId('bundle').append(...bundles.map(({ name }) => make('option', { value: name }, name)));
  byId('bundle-field').hidden = bundles.length < 2;
  byId('about').textContent = bundles.map(({ name, classes }) => `${name}, ${classes.length} classes`).join(' · ');
  offer();
}

function offer() {
  const { recipes, modes, classes, default_recipe: usual } = bundle();
  byId('recipe').replaceChildren(...recipes.map((name) => make('option', { value: name, selected: name === usual }, name)));
  byId('mode').replaceChildren(...modes.map((name) => make('option', { value: name, selected: name === 'both' }, name)));
  byId('add').replaceChildren(
    make('option', { value: '' }, 'add a class …'), ...classes.map((name, c) => make('option', { value: c }, name)),
  );
  state.chosen.clear();
  drawChosen();
}

function drawChosen() {
  byId('chosen').replaceChildren(...[...state.chosen].sort((a, b) => a - b).map((c) => make(
    'button', { type: 'button', class: 'chip', title: 'remove', style: { '--swatch': cssColour(c + 1) }, onclick: () => setChosen(c, false) },
    bundle().classes[c],
  )));
}

function setChosen(c, on) {
  if (on) state.chosen.add(c);
  else state.chosen.delete(c);
  if (on) document.querySelector('[name=given][value=chosen]').checked = true;
  drawChosen();
}

// -- the photo --------------------------------------------------------------------------------------------------------

function take(file) {
  if (!file) return;
  fail('');
  if (state.url) URL.revokeObjectURL(state.url);
  Object.assign(state, { file, url: URL.createObjectURL(file) });
  byId('preview').src = state.url;
  byId('preview').hidden = false;
  byId('invite').hidden = true;
  byId('run').disabled = false;
  ask();
}

const drop = byId('drop');
byId('file').addEventListener('change', (event) => take(event.target.files[0]));
for (const type of ['dragover', 'dragleave', 'drop']) {
  document.addEventListener(type, (event) => {
    event.preventDefault();
    drop.classList.toggle('over', type === 'dragover');
    if (type === 'drop') take([...event.dataTransfer.files][0]);
  });
}
document.addEventListener('paste', (event) => take([...event.clipboardData.files][0]));

// -- asking ------------------------------------------------------------------------------------------------------------

function question() {
  const query = new URLSearchParams({
    bundle: bundle().name, recipe: byId('recipe').value, mode: byId('mode').value, steps: byId('steps').checked,
  });
  if (document.querySelector('[name=given]:checked').value === 'chosen') {
    if (!state.chosen.size) throw new Error('choose at least one class, or have them predicted');
    query.set('classes', [...state.chosen].join(','));
  } else {
    query.set('score_threshold', byId('score').value / 100);
  }
  return query;
}

async function ask() {
  if (!state.file) return;
  state.asked?.abort();
  const asked = new AbortController();
  state.asked = asked;
  fail('');
  byId('status').textContent = 'Working …';
  document.body.classList.add('busy');
  const began = performance.now();
  try {
    const body = new FormData();
    body.set('image', state.file);
    const answer = await json(await fetch(`/maps?${question()}`, { method: 'POST', body, signal: asked.signal }));
    answer.levels = (await Promise.all(answer.maps.map(({ png }) => decodePng(bytesOf(png))))).map(({ data }) => data);
    if (state.asked === asked) await show(answer, (performance.now() - began) / 1000);
  } catch (error) {
    if (error.name !== 'AbortError') fail(oneLine(error));
  } finally {
    if (state.asked === asked) {
      byId('status').textContent = '';
      document.body.classList.remove('busy');
    }
  }
}

/** The JSON of a response; throws the reason that it gives where it is an error. */
async function json(response) {
  const content = await response.json().catch(() => null);
  if (response.ok && content) return content;
  const wait = response.headers.get('Retry-After');
  const reason = content?.error ?? `the server answered ${response.status}`;
  throw new Error(response.status === 429 ? `the server is busy; try again in ${wait ?? 1} s` : reason);
}

const oneLine = (error) => (error instanceof TypeError ? 'the server cannot be reached' : error.message).split('\n')[0];

// -- the answer --------------------------------------------------------------------------------------------------------

async function show(answer, seconds) {
  byId('answer').hidden = false;
  byId('welcome').hidden = true;
  const photo = make('img', { src: state.url, alt: '' });
  await photo.decode().catch(() => null); // TIFF and others that the server reads and this browser does not
  viewer.show(answer, state.url);
  drawScores(answer.scores, false);
  const times = [['waiting in line', answer.seconds.queued], ['at the server', answer.seconds.total], ['with the network', seconds]];
  byId('time').replaceChildren(...times.flatMap(([name, s]) => [make('dt', {}, name), make('dd', {}, `${s.toFixed(2)} s`)]));
  showSteps(answer, photo);
  byId('answer').dataset.shows = `${answer.recipe}/${answer.mode}`;
}

function drawScores(scores, all) {
  byId('scores').replaceChildren(...scores.slice(0, all ? undefined : SHOWN_SCORES).map(({ name, index, logit, probability }) => make(
    'li', {}, make(
      'button', { type: 'button', title: `logit ${logit.toFixed(2)}; choose this class`, onclick: () => { setChosen(index, true); ask(); } },
      make('span', {}, name), make('b', {}, `${percent(probability)} %`), make('i', { style: { '--share': `${100 * probability}%` } }),
    ),
  )));
  const more = byId('all-scores');
  more.hidden = scores.length <= SHOWN_SCORES;
  more.textContent = all ? 'fewer' : `all ${scores.length}`;
  more.onclick = () => drawScores(scores, !all);
}

byId('ask').addEventListener('submit', (event) => {
  event.preventDefault();
  ask();
});
byId('bundle').addEventListener('change', offer);
byId('score').addEventListener('input', () => { byId('score-value').value = (byId('score').value / 100).toFixed(2); });
byId('add').addEventListener('change', (event) => {
  if (event.target.value !== '') setChosen(Number(event.target.value), true);
  event.target.value = '';
});
start().catch((error) => fail(oneLine(error)));
