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
  readonly user: { readonly name: string; readonly uid: number; readonly gid: number; readonly home: string };
  /** Environment every step starts with (PATH, LANG). */
  readonly env: Readonly<Record<string, string>>;
  /** sha256 of the resolved definition: same definition, same packages asked for. */
  readonly definitionDigest: string;
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
}
