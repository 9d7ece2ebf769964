/** Entry of the CLI: turns on V8's compile cache first, so that everything after it comes compiled from disk. */
import { enableCompileCache } from 'node:module';
import { join } from 'node:path';

// Beside the bundle: same owner, and gone with it. A directory that cannot be written costs only time.
if (!import.meta.filename.endsWith('.ts')) enableCompileCache(join(import.meta.dirname, '../.compile-cache'));
const { main } = await import('./cli.ts');
process.exit(await main(process.argv.slice(2)));
