/** What deploy/ has for other people's build tools, tried with the real ones: it ends in an image that runs. */
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { copyFileSync, mkdirSync, writeFileSync } from 'node:fs';
import { delimiter, dirname, join } from 'node:path';
import { after, test } from 'node:test';
import { installRoot } from '../../src/core/install.ts';
import { stopHost } from '../support/host.ts';
import { testHome, testImage } from '../support/images.ts';
import { ctPath, runCt } from '../support/run-ct.ts';
import { scratchDirectory } from '../support/scratch.ts';

after(() => stopHost(testHome));

/** For `skip` of a test. */
function without(...programs: readonly string[]): string | false {
  const missing = programs.filter((program) => spawnSync(program, ['--version']).error !== undefined);
  return missing.length === 0 ? false : `not installed: ${missing.join(', ')}`;
}

/**
 * A rule of Bazel whose output is a layout, as that of rules_oci is, which has to be downloaded. No name of a tool is
 * declared: Bazel's sandbox lets actions read what is installed.
 */
const LAYOUT_RULE = `
def _layout(ctx):
    out = ctx.actions.declare_directory(ctx.label.name)
    ctx.actions.run_shell(
        inputs = [ctx.file.source],
        outputs = [out],
        use_default_shell_env = True,
        command = " && ".join([
            "gcc -static -o app {source}",
            "rmdir {out}",
            "umoci init --layout {out}",
            "umoci new --image {out}:v1",
            "umoci insert --rootless --image {out}:v1 app /app",
        ]).format(source = ctx.file.source.path, out = out.path),
    )
    return [DefaultInfo(files = depset([out]))]

layout = rule(implementation = _layout, attrs = {"source": attr.label(allow_single_file = True)})
`;
const BUILD = `
load(":ct_image.bzl", "ct_image")
load(":layout.bzl", "layout")
layout(name = "layout", source = "app.c")
ct_image(name = "app", image = ":layout", image_name = "ct-test-bazel")
`;

test('`bazel run` of the rule stores what Bazel built, and it runs', {
  skip: without('bazel', 'umoci'),
}, async () => {
  await testImage('debian-12');
  using scratch = scratchDirectory();
  const workspace = join(scratch.path, 'workspace');
  mkdirSync(workspace);
  for (const name of ['app.c', 'ct_image.bzl'])
    copyFileSync(join(installRoot, 'deploy/bazel', name), join(workspace, name));
  // An empty WORKSPACE is what a Bazel before 6 wants, an empty MODULE.bazel what one from 8 on does.
  for (const name of ['WORKSPACE', 'MODULE.bazel']) writeFileSync(join(workspace, name), '');
  writeFileSync(join(workspace, 'layout.bzl'), LAYOUT_RULE);
  writeFileSync(join(workspace, 'BUILD.bazel'), BUILD);
  execFileSync('bazel', [`--output_user_root=${join(scratch.path, 'bazel')}`, '--batch', 'run', '//:app'], {
    cwd: workspace,
    env: {
      PATH: `${dirname(ctPath)}${delimiter}${process.env['PATH']}`,
      HOME: scratch.path,
      CI: 'true',
      CT_HOME: testHome,
    },
    stdio: 'pipe',
  });
  execFileSync('chmod', ['--recursive', 'u+w', scratch.path]);
  const { status, stdout, stderr } = await runCt(['run', '--image', 'ct-test-bazel', '--', '/app'], {
    cwd: workspace,
    env: { CT_HOME: testHome },
  });
  assert.equal(status, 0, stderr);
  assert.equal(stdout, 'an image of one program\n');
});
