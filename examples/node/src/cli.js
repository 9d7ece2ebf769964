#!/usr/bin/env node
/** Prints the notes of the next version of the project in the current directory. */
import { readdirSync, readFileSync } from 'node:fs';
import { parseChange } from './change.js';
import { nextVersion, releaseNotes } from './notes.js';

const { version } = JSON.parse(readFileSync('package.json', 'utf8'));
const changes = readdirSync('changes')
  .filter((name) => name.endsWith('.yml'))
  .sort()
  .map((name) => parseChange(name, readFileSync(`changes/${name}`, 'utf8')));
process.stdout.write(releaseNotes(nextVersion(version, changes), changes));
