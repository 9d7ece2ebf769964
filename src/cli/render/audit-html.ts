/**
 * The page of `ct audit show --html`: one file that loads nothing. What a guest chose is only ever text: it is escaped here, the
 * page's script puts no markup together, and its content security policy lets no other script or style work.
 */
import { createHash } from 'node:crypto';
import { childrenOf, nameOfNode, type ProcessNode, type Report } from '../../audit/timeline/report.ts';
import { elapsedMs, endText, isDull, type ShownRun } from './audit.ts';
import { formatElapsed } from './format.ts';

/** Elements within elements: browsers and people give up at some depth. What is deeper is shown at this one. */
const MAX_DEPTH = 60;
const CHART_WIDTH = 1000;
/** Marks of the timeline; more would only cover each other. */
const MAX_MARKS = 2000;

const STYLE = `
:root { color-scheme: light dark; --ink: #1c2024; --soft: #60646c; --line: #d9dadd; --paper: #fcfcfd; --bar: #7aa7e9; --bad: #c62a2f; --mark: #b8860b; }
@media (prefers-color-scheme: dark) { :root { --ink: #edeef0; --soft: #a0a4ab; --line: #3a3f42; --paper: #151718; --bar: #3b6fb6; --bad: #ff8f8f; --mark: #e2b340; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.3rem; margin: 0 0 .3rem; } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
code { font: 13px/1.5 ui-monospace, monospace; overflow-wrap: anywhere; }
.soft { color: var(--soft); } .bad { color: var(--bad); }
input { font: inherit; width: 100%; max-width: 30rem; padding: .4rem .6rem; border: 1px solid var(--line); border-radius: 6px; background: transparent; color: inherit; }
ul { list-style: none; margin: 0; padding: 0 0 0 1.1rem; border-left: 1px solid var(--line); } .tree > ul { padding: 0; border: 0; }
summary, .leaf { display: grid; grid-template-columns: minmax(0, 1fr) 7rem 14rem; gap: .8rem; padding: .1rem .3rem; border-radius: 4px; }
summary { cursor: pointer; } summary::before { content: none; } summary:hover, .leaf:hover { background: color-mix(in srgb, var(--line) 40%, transparent); }
svg { display: block; width: 100%; height: 1.4em; } .lane { height: 3.2em; } rect { fill: var(--bar); } rect.failed { fill: var(--bad); } rect.ground { fill: var(--line); opacity: .35; } circle { fill: var(--mark); } circle.refused { fill: var(--bad); }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
[hidden] { display: none !important; }
`;

/** Looks through the text of rows; what does not fit is hidden, except what is above something that fits. */
const SCRIPT = `
const box = document.getElementById('search');
const found = document.getElementById('found');
const rows = [...document.querySelectorAll('li')].reverse();
const entries = [...document.querySelectorAll('tbody tr')];
box.addEventListener('input', () => {
  const words = box.value.toLowerCase().split(/\\s+/).filter(Boolean);
  const fits = (text) => words.every((word) => text.toLowerCase().includes(word));
  let count = 0;
  const open = new Set();
  for (const row of rows) {
    const own = row.querySelector(':scope > details > summary, :scope > .leaf');
    const isFound = fits(own.textContent);
    if (isFound && words.length > 0) count += 1;
    const isShown = isFound || open.has(row);
    row.hidden = !isShown;
    const above = row.parentElement.closest('li');
    if (isShown && above) open.add(above);
    if (words.length > 0 && open.has(row)) row.querySelector(':scope > details').open = true;
  }
  for (const entry of entries) entry.hidden = !fits(entry.textContent);
  found.textContent = words.length > 0 ? count + ' processes' : '';
});
`;

export function reportHtml(run: ShownRun, report: Report): string {
  const policy = [
    "default-src 'none'",
    `style-src '${sourceHash(STYLE)}'`,
    `script-src '${sourceHash(SCRIPT)}'`,
    "base-uri 'none'",
    "form-action 'none'",
  ].join('; ');
  const title = `run ${run.run}${run.job === undefined ? '' : `, job ${run.job}`}`;
  const elapsed = formatElapsed(Number(report.endNs - report.startNs) / 1e6);
  const started = new Date(Number((report.startNs + run.clockOffsetNs) / 1_000_000n)).toISOString();
  const { omitted } = report;
  const by = (id: number | undefined): string => {
    const node = id === undefined ? undefined : report.processes[id];
    return node ? `${escaped(nameOfNode(node))} <span class="soft">${node.pid}</span>` : '';
  };
  const code = (text: string): string => `<code>${escaped(text)}</code>`;
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="${policy}">
<meta name="referrer" content="no-referrer">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escaped(title)}</title>
<style>${STYLE}</style>
</head>
<body>
<h1>${escaped(title)}</h1>
<p class="soft">${report.processes.length} processes in ${escaped(elapsed)}, from ${started}${
    omitted.processes + omitted.entries === 0
      ? ''
      : `; not shown, as there were too many: ${omitted.processes} processes, ${omitted.entries} other entries`
  }</p>
<p><input id="search" type="search" placeholder="search processes, files, destinations" aria-label="search" autocomplete="off"> <span id="found" class="soft" role="status"></span></p>
<h2>Timeline</h2>
${timeline(run, report)}
${table(
  'Steps',
  ['step', 'time', ''],
  run.steps.map(({ name, startNs, endNs, outcome }) => [
    escaped(name),
    endNs === undefined ? '' : formatElapsed(Number(endNs - startNs) / 1e6),
    escaped(outcome ?? ''),
  ]),
)}
<h2>Processes</h2>
<div class="tree">${tree(report)}</div>
${table(
  'Destinations',
  ['destination', 'times', 'failed', 'by'],
  report.destinations.map(({ host, port, count, refused, process }) => [
    code(`${host}:${port}`),
    String(count),
    refused > 0 ? String(refused) : '',
    by(process),
  ]),
)}
${table(
  'Files written outside of the workspace',
  ['', 'file', 'times', 'by'],
  report.written.map(({ what, path, count, process }) => [what, code(path), String(count), by(process)]),
)}
${table(
  'Refused in the VM',
  ['', 'file', 'times', 'by'],
  report.refused.map(({ what, path, recordedOnly, count, process }) => [
    recordedOnly ? `${what} (only recorded)` : `<span class="bad">${what}</span>`,
    code(path),
    String(count),
    by(process),
  ]),
)}
${table(
  'Refused by policy',
  ['', 'why', 'rule', 'times'],
  run.refusals.map(({ action, denial, count }) => [
    `<span class="bad">${action}</span>`,
    escaped(denial.message),
    code(denial.rule),
    String(count),
  ]),
)}
${table(
  'Programs',
  ['program', 'sha256', 'times', 'first by'],
  report.programs.map(({ path, digest, count, process }) => [
    code(path),
    code(digest ?? ''),
    String(count),
    by(process),
  ]),
)}
<script>${SCRIPT}</script>
</body>
</html>
`;
}

/** Control characters but line breaks, and those that turn the order of letters. */
const UNSEEN = /[^\P{Cc}\n\t]|[\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]/gu;

/** Text for between tags and within quotation marks. What could drive a terminal or turn the order of letters is shown as U+FFFD. */
export function escaped(text: string): string {
  return text
    .replaceAll(UNSEEN, '\ufffd')
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll('"', '&quot;')
    .replaceAll("'", '&#39;');
}

function sourceHash(source: string): string {
  return `sha256-${createHash('sha256').update(source).digest('base64')}`;
}

/** Cells are markup. */
function table(title: string, heads: readonly string[], rows: readonly (readonly string[])[]): string {
  if (rows.length === 0) return '';
  const head = heads.map((cell) => `<th>${cell}</th>`).join('');
  const body = rows.map((row) => `<tr>${row.map((cell) => `<td>${cell}</td>`).join('')}</tr>`).join('\n');
  return `<h2>${title}</h2>\n<table><thead><tr>${head}</tr></thead><tbody>\n${body}\n</tbody></table>`;
}

function tree(report: Report): string {
  const children = childrenOf(report.processes);
  const parts: string[] = [];
  /** What is still to be written, the next last: markup, or a node with its depth. */
  const todo: (string | { readonly node: ProcessNode; readonly depth: number })[] = [];
  const push = (nodes: readonly ProcessNode[], depth: number): void => {
    const shown = nodes.filter((node) => !isDull(node, children));
    todo.push(...shown.toReversed().map((node) => ({ node, depth })));
  };
  parts.push('<ul>');
  todo.push('</ul>');
  push(children.get(undefined) ?? [], 0);
  for (let next = todo.pop(); next !== undefined; next = todo.pop()) {
    if (typeof next === 'string') {
      parts.push(next);
      continue;
    }
    const { node, depth } = next;
    const below = (children.get(node.id) ?? []).filter((child) => !isDull(child, children));
    if (below.length === 0 || depth >= MAX_DEPTH) {
      parts.push(`<li><div class="leaf">${row(node, report)}</div></li>\n`);
      push(below, depth);
      continue;
    }
    parts.push(`<li><details${depth < 4 ? ' open' : ''}><summary>${row(node, report)}</summary><ul>\n`);
    todo.push('</ul></details></li>\n');
    push(below, depth + 1);
  }
  return parts.join('');
}

function row(node: ProcessNode, report: Report): string {
  const ms = elapsedMs(node);
  const end = endText(node);
  const command = node.command === '' ? nameOfNode(node) : node.command;
  const notes = [
    String(node.pid),
    ...(node.origin === 'unknown' ? ['its beginning is not known'] : []),
    ...(node.earlier.length > 0 ? [`was ${node.earlier.join(', ')}`] : []),
  ];
  const title = `${node.binary}${node.digest === undefined ? '' : ` sha256:${node.digest}`}`;
  const failed = end === '' || node.status === undefined ? '' : ' class="failed"';
  const [x, width] = span(node.startNs, node.endNs ?? report.endNs, report);
  return (
    `<span title="${escaped(title)}"><code>${escaped(command)}</code> <span class="soft">${escaped(notes.join(', '))}</span></span>` +
    `<span>${ms === undefined ? '' : formatElapsed(ms)} <span class="bad">${end}</span></span>` +
    `<svg viewBox="0 0 ${CHART_WIDTH} 10" preserveAspectRatio="none" aria-hidden="true"><rect${failed} x="${x}" y="2" width="${width}" height="6"/></svg>`
  );
}

/** Steps as bars; below them, a mark for each destination, file and refusal when it happened first. */
function timeline(run: ShownRun, report: Report): string {
  const bars = run.steps.map(({ name, startNs, endNs }) => {
    const [x, width] = span(startNs, endNs ?? report.endNs, report);
    return `<rect x="${x}" y="2" width="${width}" height="12"><title>${escaped(name)}</title></rect>`;
  });
  const mark = (firstNs: bigint, what: string, y: number, isBad: boolean): string =>
    `<circle${isBad ? ' class="refused"' : ''} cx="${span(firstNs, firstNs, report)[0]}" cy="${y}" r="3"><title>${escaped(what)}</title></circle>`;
  const marks = [
    ...report.destinations.map(({ firstNs, host, port }) => mark(firstNs, `${host}:${port}`, 22, false)),
    ...report.written.map(({ firstNs, what, path }) => mark(firstNs, `${what} ${path}`, 30, false)),
    ...report.refused.map(({ firstNs, what, path, recordedOnly }) =>
      mark(firstNs, `${what} ${path} ${recordedOnly ? 'recorded' : 'refused'}`, 38, true),
    ),
  ].slice(0, MAX_MARKS);
  return `<svg class="lane" viewBox="0 0 ${CHART_WIDTH} 44" preserveAspectRatio="none" role="img" aria-label="timeline"><rect class="ground" x="0" y="2" width="${CHART_WIDTH}" height="12"/>${bars.join('')}${marks.join('')}</svg>
<p class="soft">bars: steps; marks, from above: destinations, files written outside of the workspace, refusals</p>`;
}

/** Where something lies on the chart, and how wide it is; wide enough to be seen. */
function span(fromNs: bigint, toNs: bigint, { startNs, endNs }: Report): readonly [string, string] {
  const whole = Math.max(1, Number(endNs - startNs));
  const place = (ns: bigint): number => Math.min(1, Math.max(0, Number(ns - startNs) / whole)) * CHART_WIDTH;
  const [x, end] = [place(fromNs), place(toNs)];
  return [Math.min(x, CHART_WIDTH - 2).toFixed(1), Math.max(2, end - x).toFixed(1)];
}
