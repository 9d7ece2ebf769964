/** What a built image is: every part by digest. The manifest's own digest names the image. */

export interface BlobRef {
  /** `sha256:<hex>`; the blob is `<CT_HOME>/blobs/sha256/<hex>`. */
  readonly digest: string;
  readonly sizeBytes: number;
}

export interface ImageManifest {
  readonly schemaVersion: 1;
  readonly name: string;
  readonly architecture: 'amd64';
  /** EROFS image followed by its dm-verity hash tree. */
  readonly rootfs: BlobRef & {
    readonly verity: {
      readonly algorithm: 'sha256';
      readonly blockBytes: 4096;
      readonly dataBlocks: number;
      /** Block number on the same device where the hash tree starts. */
      readonly hashStartBlock: number;
      readonly rootHash: string;
      readonly salt: string;
    };
  };
  readonly kernel: BlobRef & { readonly version: string };
  readonly initramfs: BlobRef;
  /** Account that steps run as. */
  readonly user: {
    readonly name: string;
    readonly uid: number;
    readonly gid: number;
    readonly home: string;
    /** It has a user namespace with more ids than its own (guest-agent/subids.h). */
    readonly subordinateIds?: true;
  };
  /** Environment every step starts with (PATH, LANG). */
  readonly env: Readonly<Record<string, string>>;
  /** sha256 of the resolved definition: same definition, same packages asked for. */
  readonly definitionDigest: string;
  /** Names of the images that it extends, the nearest first, and its suite; absent if it was imported. */
  readonly base?: readonly string[];
  readonly packages: readonly {
    readonly name: string;
    readonly version: string;
    readonly architecture: string;
  }[];
  /** Those of npm, by the digest of their archives; absent if there are none. */
  readonly npm?: readonly {
    readonly name: string;
    readonly version: string;
    readonly integrity: string;
  }[];
  /** Every file with its owner and every package with its source and licences (inventory.ts); of images that ct built. */
  readonly inventory?: BlobRef;
  /** Absent where nobody knows what is inside. */
  readonly sbom?: { readonly cyclonedx: BlobRef; readonly spdx: BlobRef };
  /** sha256 of the lock that the packages are from; absent if there was none, or if it could not be met. */
  readonly lock?: string;
  /** There is a lock, and it could not be met: the packages are those of this machine's sources on that day. */
  readonly local?: true;
  /** What it was imported from; absent if it was built. Its programs are for a reader: jobs name their own. */
  readonly imported?: {
    readonly from: 'oci' | 'docker-archive' | 'raw' | 'qcow2';
    /** Of the OCI manifest, of Docker's configuration, or of the disk's contents. */
    readonly digest: string;
    readonly entrypoint: readonly string[];
    readonly command: readonly string[];
    readonly workingDirectory: string;
  };
}

/** All blobs of an image but the manifest itself. */
export function blobsOf(manifest: ImageManifest): readonly BlobRef[] {
  const { rootfs, kernel, initramfs, inventory, sbom } = manifest;
  const described = [...(inventory ? [inventory] : []), ...(sbom ? [sbom.cyclonedx, sbom.spdx] : [])];
  return [rootfs, kernel, initramfs, ...described];
}
