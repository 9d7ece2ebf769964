/**
 * Which identities of certificates are accepted. Exact by default; a pattern is a literal in which `*` stands for one
 * name (`[A-Za-z0-9._+-]+`), ends its segment, and lies behind the host or before the domain. It can therefore span
 * neither a `/` nor an `@`, and host and domain are always literal. There are no regular expressions to get wrong.
 */
import { CtError } from '../core/errors.ts';

const MAX_IDENTITY_LENGTH = 2048; // a URI of a workflow has about 150

export interface AcceptedIdentity {
  /** The OIDC issuer that vouched for the identity; always exact. */
  readonly issuer: string;
  /** Subject alternative name of the certificate: a URI or an email address. */
  readonly subject: string | { readonly pattern: string };
}

/** What a certificate claims. */
export interface Identity {
  readonly issuer: string;
  readonly subject: string;
}

/** Whether one of the accepted identities covers `identity`. Throws `TRUST_INVALID` if one is empty or not safe. */
export function isAccepted(identity: Identity, accepted: readonly AcceptedIdentity[]): boolean {
  return accepted
    .map(compileIdentity)
    .some(({ issuer, matches }) => issuer === identity.issuer && matches(identity.subject));
}

interface CompiledIdentity {
  readonly issuer: string;
  readonly matches: (subject: string) => boolean;
}

/** Throws `TRUST_INVALID`; policies can be checked with it when they are loaded. */
export function compileIdentity({ issuer, subject }: AcceptedIdentity): CompiledIdentity {
  if (!isPrintable(issuer)) throw invalid('an accepted identity has no issuer');
  if (typeof subject === 'string') {
    if (!isPrintable(subject)) throw invalid('an accepted identity has no subject');
    return { issuer, matches: (candidate) => candidate === subject };
  }
  const expression = compilePattern(subject.pattern);
  return { issuer, matches: (candidate) => expression.test(candidate) };
}

function compilePattern(pattern: string): RegExp {
  if (!isPrintable(pattern)) throw invalid('the pattern of an accepted identity is empty or unprintable');
  const literalHost = /^https?:\/\/[^/*@]+\/.*\*/.test(pattern);
  const literalDomain = /^[^@/:]*\*@[^@*]+$/.test(pattern);
  if (!literalHost && !literalDomain) {
    throw invalid(`the pattern ${pattern} needs a \`*\` behind a literal host, or before \`@\` and a domain`);
  }
  if (/\*[A-Za-z0-9._+*-]/.test(pattern)) {
    throw invalid(`in the pattern ${pattern} a \`*\` does not end its segment`);
  }
  // Each run of names ends at a character outside its class, so matching never backtracks.
  return new RegExp(`^${pattern.split('*').map(literally).join('[A-Za-z0-9._+-]+')}$`);
}

/** Printable ASCII without spaces, neither empty nor endless. */
export function isPrintable(value: string): boolean {
  return value.length > 0 && value.length <= MAX_IDENTITY_LENGTH && /^[\x21-\x7e]+$/.test(value);
}

function invalid(reason: string): CtError {
  return new CtError('TRUST_INVALID', reason);
}

function literally(literal: string): string {
  return literal.replaceAll(/[^A-Za-z0-9]/g, '\\$&');
}
