/** Package URLs (purl-spec): what scanners know packages by. */
import type { LockedPackage } from '../packages.ts';

/** `suite` is Debian's code name. */
export function debianPurl(entry: Omit<LockedPackage, 'sha256'>, suite: string): string {
  const qualifiers = [
    `arch=${encode(entry.architecture)}`,
    `distro=${encode(suite)}`,
    ...(entry.source === entry.name && entry.sourceVersion === entry.version
      ? []
      : [`upstream=${encode(`${entry.source}@${entry.sourceVersion}`)}`]),
  ];
  return `pkg:deb/debian/${encode(entry.name)}@${encode(entry.version)}?${qualifiers.join('&')}`;
}

export function npmPurl({ name, version }: { readonly name: string; readonly version: string }): string {
  return `pkg:npm/${name.split('/').map(encode).join('/')}@${encode(version)}`;
}

/** purl-spec leaves the colon as it is, and letters, digits, `.`, `-`, `_` and `~`. */
function encode(text: string): string {
  return encodeURIComponent(text)
    .replaceAll('%3A', ':')
    .replaceAll(/[!'()*]/g, (character) => `%${character.charCodeAt(0).toString(16).toUpperCase()}`);
}
