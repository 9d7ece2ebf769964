/** An image as an SPDX 2.3 document, in JSON. The same image gives the same bytes. */
import { createHash } from 'node:crypto';
import { toSpdx } from './licences.ts';
import { debianPurl, npmPurl } from './purl.ts';
import { hexOf, integrityHex, SBOM_TIME, type SbomSubject, subjectUuid } from './subject.ts';

type Json = Readonly<Record<string, unknown>>;
type Element = Json & { readonly SPDXID: string };

export function encodeSpdx(subject: SbomSubject): string {
  const { name, suite, inventory, kernel, guestAgent, probe, ctVersion } = subject;
  const licences = new Licences();
  const image: Element = {
    SPDXID: 'SPDXRef-Image',
    name,
    versionInfo: hexOf(subject.rootfs).slice(0, 12),
    primaryPackagePurpose: 'CONTAINER',
    ...NOTHING_SAID,
    comment: `rootfs ${subject.rootfs}, initramfs ${subject.initramfs}, kernel ${kernel.digest}`,
  };
  const parts: readonly Element[] = [
    {
      SPDXID: 'SPDXRef-OperatingSystem',
      name: 'debian',
      versionInfo: suite,
      primaryPackagePurpose: 'OPERATING_SYSTEM',
      supplier: DEBIAN,
      ...NOTHING_SAID,
    },
    ...inventory.packages.map((entry) => debian(entry, suite, licences.of(entry.licences))),
    ...inventory.npm.map((entry) => ({
      SPDXID: id('Npm', `${entry.name}@${entry.version}`),
      name: entry.name,
      versionInfo: entry.version,
      ...(entry.integrity === undefined
        ? {}
        : { checksums: [{ algorithm: 'SHA512', checksumValue: integrityHex(entry.integrity) }] }),
      externalRefs: [purlRef(npmPurl(entry))],
      ...NOTHING_SAID,
      ...(entry.licence === undefined
        ? {}
        : { comment: `its package.json names the licence ${entry.licence}` }),
    })),
    {
      ...debian(kernel.package, suite, 'NOASSERTION'),
      SPDXID: 'SPDXRef-Kernel',
      comment: `the kernel of the VM, ${kernel.version} (${kernel.digest}); the package itself is not installed`,
    },
    program(
      'GuestAgent',
      'ct-guest-agent',
      guestAgent.digest,
      ctVersion,
      `source ${guestAgent.sourceDigest}`,
    ),
    program('Probe', 'ct-probe', probe.digest, ctVersion, undefined),
  ];
  const files: readonly Element[] = inventory.files
    .filter(({ type, owner }) => type === 'file' && owner === undefined)
    .map(({ path, sha1 = '', sha256 = '' }) => ({
      SPDXID: id('File', path),
      fileName: `.${path}`,
      checksums: [
        { algorithm: 'SHA1', checksumValue: sha1 },
        { algorithm: 'SHA256', checksumValue: sha256 },
      ],
      licenseConcluded: 'NOASSERTION',
      copyrightText: 'NOASSERTION',
    }));
  const document: Json = {
    spdxVersion: 'SPDX-2.3',
    dataLicense: 'CC0-1.0',
    SPDXID: 'SPDXRef-DOCUMENT',
    name,
    documentNamespace: `urn:uuid:${subjectUuid(subject)}`,
    creationInfo: { created: SBOM_TIME, creators: [`Tool: ct-${ctVersion}`] },
    packages: [image, ...parts],
    files,
    ...licences.section(),
    relationships: [
      relationship('SPDXRef-DOCUMENT', 'DESCRIBES', image.SPDXID),
      ...[...parts, ...files].map(({ SPDXID }) => relationship(image.SPDXID, 'CONTAINS', SPDXID)),
    ],
  };
  return `${JSON.stringify(document, undefined, 1)}\n`;
}

const DEBIAN = 'Organization: Debian';
const NOTHING_SAID = {
  downloadLocation: 'NOASSERTION',
  filesAnalyzed: false,
  licenseConcluded: 'NOASSERTION',
  licenseDeclared: 'NOASSERTION',
  copyrightText: 'NOASSERTION',
};

function debian(entry: SbomSubject['kernel']['package'], suite: string, licence: string): Element {
  return {
    SPDXID: id('Deb', `${entry.name}_${entry.version}_${entry.architecture}`),
    name: entry.name,
    versionInfo: entry.version,
    supplier: DEBIAN,
    checksums: [{ algorithm: 'SHA256', checksumValue: entry.sha256 }],
    sourceInfo: `built from the Debian source package ${entry.source} ${entry.sourceVersion}`,
    externalRefs: [purlRef(debianPurl(entry, suite))],
    ...NOTHING_SAID,
    licenseDeclared: licence,
  };
}

function program(
  ref: string,
  name: string,
  digest: string,
  version: string,
  comment: string | undefined,
): Element {
  return {
    SPDXID: `SPDXRef-${ref}`,
    name,
    versionInfo: version,
    primaryPackagePurpose: 'APPLICATION',
    checksums: [{ algorithm: 'SHA256', checksumValue: hexOf(digest) }],
    ...NOTHING_SAID,
    ...(comment === undefined ? {} : { comment }),
  };
}

function purlRef(purl: string): Json {
  return { referenceCategory: 'PACKAGE-MANAGER', referenceType: 'purl', referenceLocator: purl };
}

function relationship(from: string, type: string, to: string): Json {
  return { spdxElementId: from, relationshipType: type, relatedSpdxElement: to };
}

/** Letters, digits, `.` and `-` (SPDX 2.3 §7.2), so what is not gets a hash that tells names apart. */
function id(kind: string, name: string): string {
  const plain = name.replaceAll(/[^A-Za-z0-9.-]+/g, '-').replace(/^-/, '');
  const exact = createHash('sha256').update(name).digest('hex').slice(0, 8);
  return `SPDXRef-${kind}-${plain.slice(-100)}-${exact}`;
}

/** Licences that are not on SPDX's list are named in a section of their own. */
class Licences {
  readonly #others = new Map<string, string>();

  of(names: readonly string[] | undefined): string {
    if (names === undefined) return 'NOASSERTION';
    const all = [...new Set(names.map((name) => toSpdx(name) ?? this.#reference(name)))];
    return all
      .map((expression) => (expression.includes(' OR ') && all.length > 1 ? `(${expression})` : expression))
      .join(' AND ');
  }

  #reference(name: string): string {
    const reference = id('Debian', name).replace('SPDXRef-', 'LicenseRef-');
    this.#others.set(reference, name);
    return reference;
  }

  section(): Json {
    if (this.#others.size === 0) return {};
    const others = [...this.#others].sort(([a], [b]) => (a < b ? -1 : 1));
    return {
      hasExtractedLicensingInfos: others.map(([licenseId, name]) => ({
        licenseId,
        name,
        extractedText: `Licence that Debian's copyright file calls "${name}"; its text is in /usr/share/doc/PACKAGE/copyright of the image.`,
      })),
    };
  }
}
