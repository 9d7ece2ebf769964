/** JSON of strangers grows when it is parsed: each empty list of two bytes becomes dozens. So its parts are counted first. */

/** Some ten thousand packages with all that npm writes about each. */
const MAX_PARTS = 3_000_000;
const [COMMA, BRACKET, BRACE] = [0x2c, 0x5b, 0x7b];

/** Throws an Error for what is no JSON in UTF-8, or has more parts than a lock file or its evidence needs. */
export function parseBoundedJson(bytes: Buffer): unknown {
  let parts = 0;
  for (const byte of bytes) {
    if (byte === COMMA || byte === BRACKET || byte === BRACE) parts++;
  }
  if (parts > MAX_PARTS) throw new Error(`it has more than ${MAX_PARTS} parts`);
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch {
    throw new Error('it is no JSON');
  }
}
