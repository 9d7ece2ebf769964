/**
 * OpenVEX documents (0.2.0): statements that a vulnerability does, or does not, matter to a product. They come from vendors and
 * colleagues, and let vulnerable images pass, so what is not as the specification wants it is refused.
 */
import { CtError } from '../../core/errors.ts';
import { isObject } from '../../core/json.ts';
import type { SourceText } from '../../core/source-text.ts';
import type { Exception } from './exceptions.ts';
import { parsePurl } from './purl.ts';

const MAX_STATEMENTS = 10_000;
const MAX_PRODUCTS = 1000;
/** How long "we are looking into it" holds. */
const INVESTIGATION_MS = 30 * 24 * 60 * 60 * 1000;

/** Of `not_affected`, as the specification lists them. */
const JUSTIFICATIONS = [
  'component_not_present',
  'vulnerable_code_not_present',
  'vulnerable_code_not_in_execute_path',
  'vulnerable_code_cannot_be_controlled_by_adversary',
  'inline_mitigations_already_exist',
];

type Json = Readonly<Record<string, unknown>>;

/** Whether a text is meant to be such a document. */
export function isOpenVex(text: string): boolean {
  return /^\s*\{/.test(text) && text.includes('openvex.dev/ns');
}

/** Throws CONFIG_INVALID with the file and the number of the statement. */
export function parseOpenVex({ name: file, text }: SourceText): readonly Exception[] {
  const document = parse(file, text);
  const context = document['@context'];
  if (typeof context !== 'string' || !/^https:\/\/openvex\.dev\/ns(?:\/v0\.[0-9]+\.[0-9]+)?$/.test(context)) {
    throw wrong(file, 'its @context is not that of OpenVEX 0.x');
  }
  const written = timeOf(document['timestamp']);
  if (written === undefined) throw wrong(file, 'it has no `timestamp`');
  const { statements } = document;
  if (!Array.isArray(statements) || statements.length > MAX_STATEMENTS)
    throw wrong(file, 'it has no `statements`');
  return statements.flatMap((statement: unknown, index) => {
    const where = `statement ${index + 1}`;
    if (!isObject(statement)) throw wrong(file, `${where} is no object`);
    return exceptionsOf(statement, { file, where, written });
  });
}

interface Place {
  readonly file: string;
  readonly where: string;
  readonly written: number;
}

function exceptionsOf(statement: Json, { file, where, written }: Place): readonly Exception[] {
  const refuse = (what: string): CtError => wrong(file, `${where} ${what}`);
  const saidMs = timeOf(statement['last_updated']) ?? timeOf(statement['timestamp']) ?? written;
  const { status, justification, products } = statement;
  const text = (key: string): string => (typeof statement[key] === 'string' ? statement[key].trim() : '');
  if (
    status !== 'not_affected' &&
    status !== 'fixed' &&
    status !== 'under_investigation' &&
    status !== 'affected'
  ) {
    throw refuse('has no known `status`');
  }
  if (justification !== undefined && !JUSTIFICATIONS.includes(String(justification))) {
    throw refuse('has an unknown `justification`');
  }
  const words = [justification, text('impact_statement'), text('status_notes'), text('action_statement')];
  const reason = words.filter((word) => typeof word === 'string' && word !== '').join(': ');
  if (status === 'not_affected' && justification === undefined && text('impact_statement') === '') {
    throw refuse('says `not_affected` without a `justification` or `impact_statement`');
  }
  if (status === 'under_investigation' && reason === '') {
    throw refuse('says `under_investigation` without `status_notes`');
  }
  if (!Array.isArray(products) || products.length === 0 || products.length > MAX_PRODUCTS) {
    throw refuse('names no `products`');
  }
  const shared: Omit<Exception, 'images' | 'packages'> = {
    ids: idsOf(statement['vulnerability'], refuse),
    status,
    reason: reason === '' ? status : reason.slice(0, 1000),
    from: file,
    saidMs,
    expiresMs: status === 'under_investigation' ? saidMs + INVESTIGATION_MS : undefined,
  };
  return products.map((product: unknown): Exception => {
    const id = identifierOf(product);
    if (id === undefined) throw refuse('has a product without an `@id`');
    const subcomponents = isObject(product) ? (product['subcomponents'] ?? []) : [];
    if (!Array.isArray(subcomponents) || subcomponents.length > MAX_PRODUCTS)
      throw refuse('has wrong `subcomponents`');
    const parts = subcomponents.map(identifierOf);
    if (parts.includes(undefined)) throw refuse('has a subcomponent without an `@id`');
    const packages = parts.filter((part) => part !== undefined);
    return isPackageUrl(id)
      ? { ...shared, images: [], packages: [id] }
      : { ...shared, images: [id], packages };
  });
}

/** A product that is a package covers that wherever it is; all others are images. */
function isPackageUrl(id: string): boolean {
  const purl = parsePurl(id);
  return purl !== undefined && purl.type !== 'oci';
}

function identifierOf(product: unknown): string | undefined {
  if (typeof product === 'string') return product === '' ? undefined : product;
  if (!isObject(product)) return undefined;
  const identifiers = isObject(product['identifiers']) ? product['identifiers'] : {};
  const id = identifiers['purl'] ?? product['@id'];
  return typeof id === 'string' && id !== '' ? id : undefined;
}

/** Documents of 0.0.x write the name alone. */
function idsOf(vulnerability: unknown, refuse: (what: string) => CtError): readonly string[] {
  if (typeof vulnerability === 'string' && vulnerability !== '') return [vulnerability];
  if (isObject(vulnerability)) {
    const { name, aliases = [] } = vulnerability;
    const isText = (value: unknown): value is string => typeof value === 'string' && value !== '';
    if (isText(name) && Array.isArray(aliases) && aliases.length <= MAX_PRODUCTS && aliases.every(isText)) {
      return [name, ...aliases];
    }
  }
  throw refuse('names no `vulnerability`');
}

function timeOf(value: unknown): number | undefined {
  if (typeof value !== 'string' || !/^[0-9]{4}-[0-9]{2}-[0-9]{2}T/.test(value)) return undefined;
  const time = Date.parse(value);
  return Number.isNaN(time) ? undefined : time;
}

function parse(file: string, text: string): Json {
  try {
    const document: unknown = JSON.parse(text);
    if (isObject(document)) return document;
  } catch {
    throw wrong(file, 'it is not valid JSON');
  }
  throw wrong(file, 'it is no JSON object');
}

function wrong(file: string, what: string): CtError {
  return new CtError('CONFIG_INVALID', `${file} is no OpenVEX document that counts: ${what}`, {
    hint: 'docs/scanning.md has an example',
  });
}
