/**
 * Bar plots as standalone SVG (SVG 1.1 and a style sheet): readable on light and dark, without scripts, fonts or anything
 * else from elsewhere. Pure.
 *
 *     title
 *     facts
 *     ■ one series  ■ another          bar: p50, line: p95
 *
 *     panel (ms)
 *        label ████████████──┤ 12.3 15.1    value at the bar, and where its line ends
 *        label █████──┤ 5.1 6
 *              0      5      10        axis of its own: a panel of seconds does not flatten one of milliseconds
 */

export interface Bar {
  readonly label: string;
  /** Drawn from 0; without a bar if it is not a number from 0. */
  readonly value: number;
  /** End of the line that goes on from the bar; none if it is not above the value. */
  readonly high?: number;
  /** Index into the plot's series. */
  readonly series: number;
}

export interface BarPanel {
  readonly title: string;
  readonly unit: string;
  /** Behind the title. */
  readonly note?: string;
  readonly bars: readonly Bar[];
}

export interface BarPlot {
  readonly title: string;
  /** Lines below the title. */
  readonly facts: readonly string[];
  /** Names of the colours; one to four. A single one has no legend. */
  readonly series: readonly string[];
  /** What bar and line are. */
  readonly key: string;
  readonly panels: readonly BarPanel[];
}

const WIDTH = 860;
const MARGIN = 24;
const BAR_HEIGHT = 18;
const ROW_HEIGHT = 26;
/** Room for both numbers right of the longest line. */
const VALUE_WIDTH = 120;
/** Estimate for a sans-serif font of 13 px: there is no text to measure here. */
const CHARACTER_WIDTH = 7;
const MIN_LABEL_WIDTH = 90;
const MAX_LABEL_WIDTH = 340;
const MAX_TICKS = 6;

/** Blue and orange differ for every kind of colour vision; so do their lightnesses. */
const LIGHT = {
  back: '#ffffff',
  text: '#1f2328',
  dim: '#59636e',
  grid: '#d8dee4',
  bars: ['#2f6fd0', '#d9822b', '#5b8c5a', '#8e5ea2'],
};
const DARK = {
  back: '#0d1117',
  text: '#e6edf3',
  dim: '#9198a1',
  grid: '#30363d',
  bars: ['#6ba4ff', '#f0a35e', '#8cc48b', '#c39bd3'],
};

export function renderBarPlot(plot: BarPlot): string {
  const labels = plot.panels.flatMap(({ bars }) => bars.map(({ label }) => label));
  const longest = Math.max(0, ...labels.map((label) => [...label].length));
  const labelWidth = Math.min(MAX_LABEL_WIDTH, Math.max(MIN_LABEL_WIDTH, longest * CHARACTER_WIDTH));
  const left = MARGIN + labelWidth + 12;
  const body: string[] = [];
  let y = MARGIN + 18;
  body.push(text(MARGIN, y, plot.title, 'title'));
  for (const fact of plot.facts) {
    y += 19;
    body.push(text(MARGIN, y, fact, 'dim'));
  }
  y += 28;
  body.push(legend(plot, y));
  for (const panel of plot.panels) {
    y += 36;
    body.push(heading(panel, y));
    y += 14;
    body.push(renderPanel(panel, left, y));
    y += panel.bars.length * ROW_HEIGHT + 22;
  }
  const height = y + MARGIN - 6;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" width="${WIDTH}" height="${height}" role="img">\n`,
    `<title>${escapeXml(plot.title)}</title>\n`,
    `<style>\n${styleSheet()}</style>\n`,
    `<rect class="back" width="${WIDTH}" height="${height}"/>\n`,
    ...body,
    '</svg>\n',
  ].join('');
}

/** One text in two spans: only whoever draws it knows how wide the title is. */
function heading({ title, unit, note }: BarPanel, y: number): string {
  const titleSpan = `<tspan class="head">${escapeXml(`${title} (${unit})`)}</tspan>`;
  const noteSpan = note === undefined ? '' : `<tspan class="dim" dx="12">${escapeXml(note)}</tspan>`;
  return `<text x="${MARGIN}" y="${y}">${titleSpan}${noteSpan}</text>\n`;
}

function legend({ series, key }: BarPlot, y: number): string {
  const parts: string[] = [];
  let x = MARGIN;
  if (series.length > 1) {
    for (const [index, name] of series.entries()) {
      parts.push(`<rect class="s${index}" x="${x}" y="${y - 11}" width="13" height="13" rx="2"/>\n`);
      parts.push(text(x + 19, y, name));
      x += 19 + [...name].length * CHARACTER_WIDTH + 24;
    }
  }
  parts.push(text(x, y, key, 'dim'));
  return parts.join('');
}

function renderPanel({ bars, unit }: BarPanel, left: number, top: number): string {
  const numbers = bars.flatMap(({ value, high }) => [value, high ?? 0]).filter(isDrawable);
  const { step, end } = scaleFor(Math.max(0, ...numbers));
  const width = WIDTH - MARGIN - VALUE_WIDTH - left;
  const at = (value: number): number => round(left + (value / end) * width);
  const bottom = top + bars.length * ROW_HEIGHT;
  const parts: string[] = [];
  for (let tick = 0; tick <= end / step + 1e-9; tick++) {
    const value = tick * step;
    const x = at(value);
    parts.push(`<line class="grid" x1="${x}" y1="${top}" x2="${x}" y2="${bottom}"/>\n`);
    const label = tick === 0 ? `0 ${unit}` : formatValue(value);
    parts.push(text(x, bottom + 16, label, 'tick'));
  }
  for (const [index, { label, value, high, series }] of bars.entries()) {
    const y = top + index * ROW_HEIGHT + (ROW_HEIGHT - BAR_HEIGHT) / 2;
    const middle = y + BAR_HEIGHT / 2;
    parts.push(text(left - 10, middle + 4.5, fit(label), 'label'));
    if (!isDrawable(value)) {
      parts.push(text(left + 7, middle + 4.5, 'no value', 'dim'));
      continue;
    }
    const barWidth = round(Math.max(1, at(value) - left));
    parts.push(
      `<rect class="s${series}" x="${left}" y="${y}" width="${barWidth}" height="${BAR_HEIGHT}" rx="2"/>\n`,
    );
    let end = left + barWidth;
    let second = '';
    if (high !== undefined && isDrawable(high) && high > value) {
      const x = at(high);
      parts.push(`<path class="high" d="M${end} ${middle}H${x}M${x} ${middle - 5}V${middle + 5}"/>\n`);
      end = Math.max(end, x);
      second = `<tspan class="second" dx="7">${formatValue(high)}</tspan>`;
    }
    const x = round(end + 7);
    parts.push(`<text class="value" x="${x}" y="${middle + 4.5}">${formatValue(value)}${second}</text>\n`);
  }
  return parts.join('');
}

/** The last tick is the first at or above `max`; steps are 1, 2 or 5 times a power of ten. */
function scaleFor(max: number): { readonly step: number; readonly end: number } {
  if (max <= 0) return { step: 1, end: 1 };
  const rough = max / MAX_TICKS;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = ([1, 2, 5, 10].find((factor) => factor * power >= rough) ?? 10) * power;
  return { step, end: Math.ceil(max / step - 1e-9) * step };
}

function isDrawable(value: number): boolean {
  return Number.isFinite(value) && value >= 0;
}

/** As many digits as a reader compares: `0.42`, `9.8`, `125`, `12,500`. */
function formatValue(value: number): string {
  const digits = value === 0 || value >= 100 ? 0 : value >= 1 ? 1 : 2;
  return value.toLocaleString('en-US', { maximumFractionDigits: digits });
}

function fit(label: string): string {
  const characters = [...label];
  const max = Math.floor(MAX_LABEL_WIDTH / CHARACTER_WIDTH);
  return characters.length <= max ? label : `${characters.slice(0, max - 1).join('')}…`;
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}

function text(x: number, y: number, content: string, className?: string): string {
  const attribute = className === undefined ? '' : ` class="${className}"`;
  return `<text${attribute} x="${x}" y="${y}">${escapeXml(content)}</text>\n`;
}

/** For content and attributes. Characters that XML 1.0 cannot have in any form become U+FFFD. */
function escapeXml(content: string): string {
  return content
    .toWellFormed()
    .replaceAll(/[^\t\n\r\u0020-\uFFFD\u{10000}-\u{10FFFF}]/gu, '\uFFFD')
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll('"', '&quot;');
}

function styleSheet(): string {
  const colours = ({ back, text, dim, grid, bars }: typeof LIGHT): string =>
    [
      `.back { fill: ${back} }`,
      `text, tspan { fill: ${text} }`,
      `.dim, .tick, .second { fill: ${dim} }`,
      `.grid { stroke: ${grid} }`,
      `.value { stroke: ${back} }`,
      `.high { stroke: ${dim} }`,
      ...bars.map((bar, index) => `.s${index} { fill: ${bar} }`),
    ].join('\n');
  return [
    'text { font: 13px system-ui, "Segoe UI", "DejaVu Sans", Helvetica, Arial, sans-serif }',
    '.title { font-size: 18px; font-weight: 600 }',
    '.head { font-weight: 600 }',
    '.tick { font-size: 11px; text-anchor: middle }',
    '.label { text-anchor: end }',
    // An outline in the colour of the back: lines of the grid end before a number.
    '.value { font-weight: 600; paint-order: stroke; stroke-width: 4px }',
    '.second { font-weight: 400; font-size: 11px }',
    '.high { fill: none; stroke-width: 1.5 }',
    colours(LIGHT),
    '@media (prefers-color-scheme: dark) {',
    colours(DARK),
    '}\n',
  ].join('\n');
}
