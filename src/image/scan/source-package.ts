/** The source package that advisories are about. Pure. */

export interface SourcePackage {
  readonly sourceName: string;
  readonly sourceVersion: string;
}

/**
 * Debian's installed kernels come from a source that only signs what `linux` has built, under the version of that with its
 * first `-` as a `+`: `linux-signed-amd64 6.1.20+1`. All other packages are what they are.
 */
export function advisorySource({ sourceName, sourceVersion }: SourcePackage): SourcePackage {
  if (!/^linux-signed-[a-z0-9]+$/.test(sourceName)) return { sourceName, sourceVersion };
  return { sourceName: 'linux', sourceVersion: sourceVersion.replace('+', '-') };
}
