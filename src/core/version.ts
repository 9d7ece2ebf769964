import manifest from '../../package.json' with { type: 'json' };

/** The version of this checkout; docs and `ct --version` take it from here. */
export const VERSION: string = manifest.version;
