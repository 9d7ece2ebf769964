import { CtError } from '../core/errors.ts';
export async function ensureImage(name: string, _options: unknown): Promise<string> {
  throw new CtError('IMAGE_NOT_FOUND', name);
}
export async function describeDefaultImage(_h: string): Promise<string | undefined> {
  return undefined;
}
