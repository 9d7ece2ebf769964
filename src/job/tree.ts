/** The working tree as a tree stream (docs/guest-link.md), and artifacts from one. */
export { type PackedTree, type PackOptions, packTree, type TreeSummary } from './tree-pack.ts';
export { type UnpackOptions, type UnpackSummary, unpackTree } from './tree-unpack.ts';
