/** Package URLs (purl-spec): parsed strictly enough to compare them. Pure. */

/** Names in purls are short; they come from SBOMs and VEX documents. */
const MAX_PURL_CHARACTERS = 1000;

export interface Purl {
  readonly type: string;
  /** Empty if there is none; `@scope` for npm. */
  readonly namespace: string;
  readonly name: string;
  readonly version: string | undefined;
  readonly qualifiers: ReadonlyMap<string, string>;
}

/** Undefined if it is none. */
export function parsePurl(text: string): Purl | undefined {
  if (text.length > MAX_PURL_CHARACTERS) return undefined;
  const match = /^pkg:\/*([A-Za-z][A-Za-z0-9.+-]*)\/([^?#]+)(?:\?([^#]*))?(?:#.*)?$/.exec(text);
  if (match === null) return undefined;
  const [, type = '', path = '', query = ''] = match;
  // A scope is written as %40, so that a bare @ begins the version.
  const at = path.lastIndexOf('@');
  const version = at > 0 ? path.slice(at + 1) : undefined;
  const segments = (at > 0 ? path.slice(0, at) : path).split('/').filter((segment) => segment !== '');
  try {
    const name = decodeURIComponent(segments.pop() ?? '');
    if (name === '') return undefined;
    return {
      type: type.toLowerCase(),
      namespace: segments.map(decodeURIComponent).join('/'),
      name,
      version: version === undefined || version === '' ? undefined : decodeURIComponent(version),
      qualifiers: new Map(
        query
          .split('&')
          .filter((pair) => pair.includes('='))
          .map((pair) => {
            const [key = '', ...value] = pair.split('=');
            return [key.toLowerCase(), decodeURIComponent(value.join('='))];
          }),
      ),
    };
  } catch {
    return undefined;
  }
}

/** Whether `pattern` is about what `purl` names: all but qualifiers, and the version only where it has one. */
export function purlCovers(pattern: Purl, purl: Purl): boolean {
  return (
    pattern.type === purl.type &&
    pattern.namespace === purl.namespace &&
    pattern.name === purl.name &&
    (pattern.version === undefined || pattern.version === purl.version)
  );
}
