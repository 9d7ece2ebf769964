/** Options that say who signs, for the commands that do: `ct sign` and `ct image sign`. */
import { dirname, resolve } from 'node:path';
import { CtError } from '../core/errors.ts';
import { commandKey } from '../signing/command-key.ts';
import { ownKey } from '../signing/own-key.ts';
import { NO_SERVICES, parseSigningConfig } from '../signing/services.ts';
import { keylessSigner, keySigner, type Signer } from '../signing/signer.ts';
import type { ParsedOptions } from './command.ts';
import { readInput } from './image-signers.ts';
import { readUserConfig, userConfigPath } from './user-config.ts';

/** Throws USAGE unless exactly one is named, CONFIG_INVALID, SIGNING_KEY_INVALID, SIGNING_CONFIG_INVALID. */
export async function signerOf(parsed: ParsedOptions): Promise<Signer> {
  const keyPath = parsed.value('key');
  const tokenPath = parsed.value('identity-token');
  const command = parsed.value('key-command');
  const configPath = parsed.value('signing-config');
  if ([keyPath, tokenPath, command].filter((given) => given !== undefined).length !== 1) {
    throw new CtError(
      'USAGE',
      'who signs? a --key, a --key-command, or the identity of an --identity-token',
      {
        hint: '--identity-token needs --signing-config, which names the services',
      },
    );
  }
  const services =
    configPath === undefined ? NO_SERVICES : parseSigningConfig(readInput(configPath), new Date());
  if (command !== undefined) return keySigner(configuredKey(command), services);
  if (tokenPath !== undefined) {
    return keylessSigner(async () => readInput(tokenPath).toString('utf8'), services);
  }
  const passphrasePath = parsed.value('passphrase-file');
  const passphrase =
    passphrasePath === undefined
      ? undefined
      : async () =>
          readInput(passphrasePath)
            .toString('utf8')
            .replace(/\r?\n$/, '');
  const pem = readInput(keyPath ?? '').toString('utf8');
  try {
    return keySigner(await ownKey(pem, passphrase), services);
  } catch (error) {
    if (!(error instanceof CtError) || error.code !== 'SIGNING_KEY_INVALID') throw error;
    throw new CtError(error.code, `${keyPath}: ${error.message}`, { hint: error.hint, cause: error });
  }
}

/** A program of the user's own configuration: a project can name it, but not say what it is. */
function configuredKey(name: string): ReturnType<typeof commandKey> {
  const path = userConfigPath(process.env);
  const commands = readUserConfig(path).signing ?? {};
  const command = Object.hasOwn(commands, name) ? commands[name] : undefined;
  if (command === undefined) {
    const names = Object.keys(commands);
    throw new CtError('USAGE', `${path} names no signing command \`${name}\``, {
      hint:
        names.length === 0
          ? 'write `signing: {NAME: {command: [PROGRAM, ARGUMENT], public-key: FILE}}` there (docs/signing.md)'
          : `it names ${names.join(', ')}`,
    });
  }
  const [program = '', ...args] = command.command;
  return commandKey({
    argv: [program, ...args],
    input: command.input ?? 'digest',
    output: command.output ?? 'raw',
    publicKeyPem: readInput(resolve(dirname(path), command.publicKey)).toString('utf8'),
    ...(command.env === undefined ? {} : { env: command.env }),
    ...(command.timeout === undefined ? {} : { timeoutMs: command.timeout }),
  });
}
