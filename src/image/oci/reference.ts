/** Names of images in registries: `HOST[:PORT]/REPOSITORY[:TAG][@sha256:DIGEST]` (distribution-spec v1.1). */
import { isIP } from 'node:net';
import { CtError } from '../../core/errors.ts';

export interface Reference {
  /** `https://registry.example:5000`; http for this machine alone. */
  readonly origin: string;
  /** Host and port, as configurations of credentials have it. */
  readonly host: string;
  readonly repository: string;
  /** `latest` if the name has neither tag nor digest. */
  readonly tag: string | undefined;
  readonly digest: string | undefined;
}

const HOST = /^(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?|\[[0-9a-fA-F:.]{2,45}\])(?::[0-9]{1,5})?$/;
const REPOSITORY = /^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:\/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$/;
const MAX_REPOSITORY_LENGTH = 255;
const TAG = /^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$/;

/**
 * Throws USAGE. `https://` in front is allowed, and asks a registry on this machine to speak TLS; `http://` is allowed for
 * such a one only.
 */
export function parseReference(text: string): Reference {
  const [, scheme, rest = ''] = /^(?:(https?):\/\/)?(.*)$/s.exec(text) ?? [];
  const slash = rest.indexOf('/');
  const host = rest.slice(0, Math.max(0, slash));
  const [, repository = '', tag, digest] =
    /^([^:@]*)(?::([^@]*))?(?:@(.*))?$/s.exec(rest.slice(slash + 1)) ?? [];
  if (
    !HOST.test(host) ||
    !REPOSITORY.test(repository) ||
    repository.length > MAX_REPOSITORY_LENGTH ||
    (tag !== undefined && !TAG.test(tag)) ||
    (digest !== undefined && !/^sha256:[0-9a-f]{64}$/.test(digest))
  ) {
    throw new CtError('USAGE', `${JSON.stringify(text.slice(0, 300))} is no name of an image in a registry`, {
      hint: 'HOST/REPOSITORY[:TAG][@sha256:DIGEST], such as registry.example/team/debian-12:2025-06',
    });
  }
  const local = isLoopback(URL.parse(`http://${host}`)?.hostname ?? '');
  if (scheme === 'http' && !local) {
    throw new CtError('USAGE', `http is for registries on this machine, and ${host} is elsewhere`);
  }
  const origin = URL.parse(`${scheme ?? (local ? 'http' : 'https')}://${host}`)?.origin;
  if (origin === undefined) throw new CtError('USAGE', `${host} is no host`);
  return { origin, host, repository, tag: tag ?? (digest === undefined ? 'latest' : undefined), digest };
}

/** Hostnames as URLs have them. */
export function isLoopback(hostname: string): boolean {
  if (hostname === 'localhost' || hostname === '[::1]') return true;
  return isIP(hostname) === 4 && hostname.startsWith('127.');
}
