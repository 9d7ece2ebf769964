/** Writes the generated parts of the docs: `node src/job/write-reference.ts`. Tests compare them. */
import { readFileSync, writeFileSync } from 'node:fs';
import { jobFileJsonSchema, withReferenceTable } from './reference.ts';

const docs = new URL('../../docs/', import.meta.url);
writeFileSync(new URL('ct.schema.json', docs), jobFileJsonSchema());
const page = new URL('job-file.md', docs);
writeFileSync(page, withReferenceTable(readFileSync(page, 'utf8')));
