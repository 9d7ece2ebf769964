/** What all images have in common: constants of the way they are made. */

/** Part of every definition's digest: raise it when the same definition would give another file system. */
export const ROOTFS_RECIPE = 2;

/** Every time stamp in an image: 2025-01-01, in seconds. The time of a build would make every build different. */
export const IMAGE_EPOCH = 1_735_689_600;

/** Part of what decides whether a stored image is current: raise it when the same parts would give another manifest or SBOM. */
export const MANIFEST_RECIPE = 2;
