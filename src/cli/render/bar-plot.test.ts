import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type BarPlot, renderBarPlot } from './bar-plot.ts';

const PLOT: BarPlot = {
  title: 'How long',
  facts: ['a host'],
  series: ['microVM', 'container'],
  key: 'bar: p50',
  panels: [
    {
      title: 'first',
      unit: 'ms',
      bars: [
        { label: 'one', value: 12.34, high: 20, series: 0 },
        { label: 'two', value: 4321, series: 1 },
      ],
    },
  ],
};

/** What a parser would object to, by the rules of XML 1.0 that a writer can break. */
function xmlProblem(document: string): string | undefined {
  const open: string[] = [];
  const rest = document.replaceAll(
    /<(\/?)([a-z][\w:-]*)((?:\s+[\w:-]+="[^"<]*")*)\s*(\/?)>/gi,
    (whole, closes: string, name: string, attributes: string, empty: string) => {
      const names = [...attributes.matchAll(/([\w:-]+)=/g)].map(([, attribute]) => attribute);
      if (new Set(names).size !== names.length) open.push(`twice the same attribute: ${whole}`);
      if (closes === '') {
        if (empty === '') open.push(name);
      } else if (open.at(-1) === name) open.pop();
      else open.push(`</${name}>`);
      return attributes.replaceAll(/&(amp|lt|gt|quot);/g, '').includes('&') ? '&' : '';
    },
  );
  if (open.length > 0) return `not closed or not open: ${open.join(' ')}`;
  if (/[<&]/.test(rest.replaceAll(/&(amp|lt|gt|quot);/g, ''))) return 'a bare < or &';
  // biome-ignore lint/suspicious/noControlCharactersInRegex: those that XML 1.0 forbids
  return /[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/.test(document) || !document.isWellFormed()
    ? 'a character that XML cannot have'
    : undefined;
}

const withBars = (...bars: BarPlot['panels'][number]['bars']): BarPlot => ({
  ...PLOT,
  panels: [{ title: 'panel', unit: 'ms', bars }],
});

test('a plot is well-formed XML that needs nothing from elsewhere', () => {
  const svg = renderBarPlot(PLOT);
  assert.equal(xmlProblem(svg), undefined);
  assert.match(svg, /^<svg xmlns="http:\/\/www\.w3\.org\/2000\/svg"/);
  assert.doesNotMatch(svg.replace('xmlns="http://www.w3.org/2000/svg"', ''), /https?:|href|url\(|<script/);
});

test('the check of the tests finds what is not well-formed', () => {
  for (const broken of [
    '<a>',
    '<a></b>',
    '<a>&</a>',
    '<a x="1" x="2"/>',
    '<a>\u0001</a>',
    '<a x="&"/>',
    'a < b',
  ]) {
    assert.notEqual(xmlProblem(broken), undefined, broken);
  }
});

test('title, facts, series, key, panels, labels, values and units are in the plot', () => {
  const svg = renderBarPlot(PLOT);
  for (const expected of ['How long', 'a host', 'microVM', 'container', 'bar: p50', 'one', '0 ms']) {
    assert.ok(svg.includes(`>${expected}</text>`), expected);
  }
});

test('a bar has its value beside it, and where its line ends', () => {
  const svg = renderBarPlot(PLOT);
  assert.match(svg, />12\.3<tspan class="second" dx="7">20<\/tspan><\/text>/);
  assert.match(svg, />4,321<\/text>/);
});

test('a panel has its unit and its note in its heading', () => {
  const svg = renderBarPlot({ ...PLOT, panels: [{ title: 'a', unit: 'ms', note: '1 < 2', bars: [] }] });
  assert.match(svg, />a \(ms\)<\/tspan><tspan class="dim" dx="12">1 &lt; 2<\/tspan>/);
  assert.equal(xmlProblem(svg), undefined);
});

test('it has colours for light and for dark', () => {
  assert.match(renderBarPlot(PLOT), /@media \(prefers-color-scheme: dark\) \{\n\.back \{ fill: #0d1117 \}/);
});

test('text from elsewhere is escaped, and what XML cannot have is replaced', () => {
  const hostile = '</text><script>alert("1")</script>&\u0000\u001b\ud800';
  const svg = renderBarPlot({
    title: hostile,
    facts: [hostile],
    series: [hostile, hostile],
    key: hostile,
    panels: [{ title: hostile, unit: hostile, bars: [{ label: hostile, value: 1, series: 0 }] }],
  });
  assert.equal(xmlProblem(svg), undefined);
  assert.doesNotMatch(svg, /<script/);
  assert.match(
    svg,
    /&lt;\/text&gt;&lt;script&gt;alert\(&quot;1&quot;\)&lt;\/script&gt;&amp;\uFFFD\uFFFD\uFFFD/,
  );
});

test('a value that is no number has a row without a bar, and no NaN or Infinity gets into the plot', () => {
  for (const value of [Number.NaN, Number.POSITIVE_INFINITY, -1]) {
    const svg = renderBarPlot(withBars({ label: 'x', value, high: Number.NaN, series: 0 }));
    assert.doesNotMatch(svg, /NaN|Infinity|="-/);
    assert.match(svg, />no value</);
    assert.equal(xmlProblem(svg), undefined);
  }
});

test('zeros, one bar and no bars are plots, too', () => {
  for (const plot of [
    withBars({ label: 'x', value: 0, series: 0 }),
    withBars(),
    { ...PLOT, panels: [], facts: [], series: ['one'] },
  ]) {
    const svg = renderBarPlot(plot);
    assert.equal(xmlProblem(svg), undefined);
    assert.doesNotMatch(svg, /NaN|Infinity|undefined/);
  }
});

test('bars are proportional to their values, and the longest ends within the axis', () => {
  const svg = renderBarPlot(
    withBars({ label: 'a', value: 50, series: 0 }, { label: 'b', value: 100, high: 117, series: 0 }),
  );
  const widths = [...svg.matchAll(/<rect class="s0"[^>]* width="([\d.]+)" height="18"/g)].map(([, width]) =>
    Number(width),
  );
  assert.equal(widths.length, 2);
  assert.ok(Math.abs(2 * (widths[0] ?? 0) - (widths[1] ?? 0)) < 0.5, widths.join(' '));
  const ticks = [...svg.matchAll(/class="tick" x="([\d.]+)"[^>]*>([^<]+)</g)];
  assert.deepEqual(
    ticks.map(([, , label]) => label),
    ['0 ms', '20', '40', '60', '80', '100', '120'],
  );
  const end = Number(/class="high" d="M[\d.]+ [\d.]+H([\d.]+)/.exec(svg)?.[1]);
  assert.ok(end < Number(ticks.at(-1)?.[1]));
});

test('the text that is drawn stays within the width of the plot', () => {
  const svg = renderBarPlot(withBars({ label: 'x'.repeat(500), value: 1, series: 0 }));
  assert.match(svg, />x{47}…</);
});
