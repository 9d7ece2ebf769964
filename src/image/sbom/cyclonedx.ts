/** An image as a CycloneDX 1.6 document (ECMA-424), in JSON. The same image gives the same bytes. */
import { ROOTFS_RECIPE } from '../recipe.ts';
import { toSpdx } from './licences.ts';
import { debianPurl, npmPurl } from './purl.ts';
import { hexOf, integrityHex, SBOM_TIME, type SbomSubject, subjectUuid } from './subject.ts';

type Json = Readonly<Record<string, unknown>>;

const DEBIAN = { name: 'Debian' };

export function encodeCycloneDx(subject: SbomSubject): string {
  const { name, suite, inventory, kernel, guestAgent, probe, ctVersion } = subject;
  const components: readonly (Json & { readonly 'bom-ref': string })[] = [
    { type: 'operating-system', 'bom-ref': 'os', supplier: DEBIAN, name: 'debian', version: suite },
    ...inventory.packages.map((entry) => debian(entry, suite, entry.licences)),
    ...inventory.npm.map((entry) => ({
      type: 'library',
      'bom-ref': npmPurl(entry),
      ...npmName(entry.name),
      version: entry.version,
      ...(entry.integrity === undefined
        ? {}
        : { hashes: [{ alg: 'SHA-512', content: integrityHex(entry.integrity) }] }),
      ...(entry.licence === undefined ? {} : { licenses: [{ license: { name: entry.licence } }] }),
      purl: npmPurl(entry),
    })),
    {
      ...debian(kernel.package, suite, undefined),
      'bom-ref': 'kernel',
      description: `the kernel of the VM, ${kernel.version}; the package itself is not installed`,
      components: [file('kernel-image', `vmlinuz-${kernel.version}`, kernel.digest)],
    },
    {
      ...file('guest-agent', 'init', guestAgent.digest),
      type: 'application',
      name: 'ct-guest-agent',
      version: ctVersion,
      properties: [{ name: 'ct:sourceDigest', value: guestAgent.sourceDigest }],
    },
    { ...file('probe', 'probe', probe.digest), type: 'application', name: 'ct-probe', version: ctVersion },
    ...inventory.files
      .filter(({ type, owner }) => type === 'file' && owner === undefined)
      .map(({ path, sha256 = '' }) => file(`file:${path}`, path, sha256)),
  ];
  const document: Json = {
    $schema: 'http://cyclonedx.org/schema/bom-1.6.schema.json',
    bomFormat: 'CycloneDX',
    specVersion: '1.6',
    serialNumber: `urn:uuid:${subjectUuid(subject)}`,
    version: 1,
    metadata: {
      timestamp: SBOM_TIME,
      lifecycles: [{ phase: 'build' }],
      tools: {
        components: [
          {
            type: 'application',
            name: 'ct',
            version: ctVersion,
            properties: [{ name: 'ct:rootfsRecipe', value: String(ROOTFS_RECIPE) }],
          },
        ],
      },
      component: {
        type: 'container',
        'bom-ref': 'image',
        name,
        properties: [
          { name: 'ct:rootfs', value: subject.rootfs },
          { name: 'ct:initramfs', value: subject.initramfs },
          { name: 'ct:kernel', value: kernel.digest },
        ],
      },
    },
    components,
    dependencies: [{ ref: 'image', dependsOn: components.map((entry) => entry['bom-ref']).sort() }],
  };
  return `${JSON.stringify(document, undefined, 1)}\n`;
}

function debian(
  entry: SbomSubject['kernel']['package'],
  suite: string,
  licences: readonly string[] | undefined,
): Json & { readonly 'bom-ref': string } {
  const purl = debianPurl(entry, suite);
  return {
    type: 'library',
    'bom-ref': purl,
    supplier: DEBIAN,
    name: entry.name,
    version: entry.version,
    hashes: [{ alg: 'SHA-256', content: entry.sha256 }],
    ...(licences === undefined ? {} : { licenses: licenceChoice(licences) }),
    purl,
    properties: [
      { name: 'ct:sourcePackage', value: entry.source },
      { name: 'ct:sourceVersion', value: entry.sourceVersion },
    ],
  };
}

/** One expression if all of it is known, else a list with names for what is not. */
function licenceChoice(licences: readonly string[]): readonly Json[] {
  const known = licences.map(toSpdx);
  if (known.every((expression) => expression !== undefined)) {
    const all = [...new Set(known)].map((expression) =>
      expression.includes(' OR ') && known.length > 1 ? `(${expression})` : expression,
    );
    return [{ expression: all.join(' AND ') }];
  }
  return licences.map((name, index) => {
    const id = known[index];
    return { license: id === undefined || id.includes(' ') ? { name } : { id } };
  });
}

function npmName(name: string): Json {
  const [scope, rest] = name.startsWith('@') ? name.split('/') : [undefined, name];
  return scope === undefined ? { name } : { group: scope, name: rest };
}

function file(ref: string, name: string, digest: string): Json & { readonly 'bom-ref': string } {
  return { type: 'file', 'bom-ref': ref, name, hashes: [{ alg: 'SHA-256', content: hexOf(digest) }] };
}
