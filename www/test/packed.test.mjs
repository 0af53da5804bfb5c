// The package as `npm pack` makes it, installed into fresh projects: with Vite, webpack, esbuild, without any of them,
// in Node, and as TypeScript sees it.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { cp, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

import { build as esbuild } from 'esbuild';
import { build as vite } from 'vite';
import webpack from 'webpack';

import { RangeServer } from '../../web/test/http-server.mjs';
import { findChromium, launch } from './browser.mjs';

const executable = findChromium();
const noBrowser = { skip: executable ? false : 'no Chromium is installed' };
const run = promisify(execFile);
const npm = process.platform === 'win32' ? 'npm.cmd' : 'npm';
const WEB = fileURLToPath(new URL('../../web', import.meta.url));
const TYPESCRIPT = createRequire(import.meta.url).resolve('typescript/package.json').replace('package.json', 'bin/tsc');

/** What a program would do: write, keep, and write as a guest of v86 does. */
const PROGRAM = `
import { memoryStorage, OxcowError, start } from 'oxcow';
import { v86Disk } from 'oxcow/v86';

export async function program() {
  const engine = await start();
  const storage = memoryStorage();
  const image = await engine.create(storage, { size: 2 ** 20 });
  const disk = v86Disk(image);
  await new Promise((resolve) => disk.set(512, new Uint8Array(512).fill(1), () => resolve(undefined)));
  const snapshot = await disk.snapshot('one');
  await new Promise((resolve) => disk.set(512, new Uint8Array(512).fill(2), () => resolve(undefined)));
  const now = await image.read(512, 1);
  await disk.close();
  const again = await engine.open(storage.bytes());
  const { corruptions, leaks } = await again.check();
  await again.useSnapshot(snapshot.id);
  const old = await again.read(512, 1);
  const error = await engine.open(new Uint8Array(512), { format: 'qcow2' }).catch((error) => error);
  await engine.close();
  return { now: now[0], old: old[0], clean: !corruptions && !leaks, error: error instanceof OxcowError && error.code };
}
`;
const EXPECTED = { now: 2, old: 1, clean: true, error: 'not-this-format' };

const PAGE = (script) => `<!doctype html><title>a program</title><script type="module" src="${script}"></script>`;
const MAIN = `
import { program } from './program.js';
program().then((result) => (globalThis.result = result), (error) => (globalThis.result = String(error)));
`;

const TYPES = { html: 'text/html', js: 'text/javascript', mjs: 'text/javascript', wasm: 'application/wasm' };

describe('the packed package', () => {
  let folder;
  let tarball;
  let browser;

  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'oxcow-packed-'));
    const { stdout } = await run(npm, ['pack', '--json', '--pack-destination', folder], { cwd: WEB });
    tarball = join(folder, JSON.parse(stdout)[0].filename);
    if (executable) browser = await launch(executable);
  });

  after(async () => {
    await browser?.close();
    await rm(folder, { recursive: true, force: true });
  });

  /** A project that has nothing but the package. */
  async function project(name) {
    const path = join(folder, name);
    await mkdir(path);
    await writeFile(join(path, 'package.json'), JSON.stringify({ name, private: true, type: 'module' }));
    // The package depends on nothing: there is nothing to be fetched.
    await run(npm, ['install', '--offline', '--no-audit', '--no-fund', tarball], { cwd: path });
    await writeFile(join(path, 'program.js'), PROGRAM);
    await writeFile(join(path, 'main.js'), MAIN);
    return path;
  }

  /** Runs what a folder serves as a page. */
  async function inBrowser(root) {
    const server = await RangeServer.start(Buffer.alloc(0));
    server.others = (url) => {
      const path = url === '/' ? 'index.html' : url.slice(1);
      const type = TYPES[path.split('.').at(-1)];
      return readFile(join(root, path)).then((content) => [type, content], () => undefined);
    };
    const page = await browser.newPage();
    try {
      await page.goto(server.origin);
      await page.waitForFunction(() => 'result' in globalThis, undefined, { timeout: 60_000 });
      return await page.evaluate(() => globalThis.result);
    } finally {
      await page.close();
      await server.close();
    }
  }

  test('holds what it should, and nothing else', async () => {
    const path = await project('files');
    const found = await readdir(join(path, 'node_modules/oxcow'), { recursive: true });
    const files = found.map((file) => file.replaceAll('\\', '/'));
    const wanted = ['README.md', 'LICENSE-MIT', 'LICENSE-APACHE', 'dist/index.d.ts', 'dist/v86.d.ts'];
    for (const file of wanted) assert.ok(files.includes(file), file);
    const allowed = /^(README\.md|package\.json|LICENSE-\w+|dist(\/[\w-]+)*|dist\/.*\.(js|d\.ts|wasm))$/;
    const others = files.filter((file) => !allowed.test(file));
    assert.deepEqual(others, []);
    const { exports } = JSON.parse(await readFile(join(path, 'node_modules/oxcow/package.json'), 'utf8'));
    const targets = (entry) => (typeof entry === 'string' ? [entry] : Object.values(entry).flatMap(targets));
    for (const target of targets(exports)) assert.ok(files.includes(target.slice(2)), target);
  });

  test('runs in Node', async () => {
    const path = await project('node');
    const print = 'console.log(JSON.stringify(await program()));';
    await writeFile(join(path, 'run.js'), `import { program } from './program.js'; ${print}`);
    const { stdout } = await run(process.execPath, ['run.js'], { cwd: path });
    assert.deepEqual(JSON.parse(stdout), EXPECTED);
  });

  test('runs in a browser without a bundler, by an import map', noBrowser, async () => {
    const path = await project('plain');
    const imports = { oxcow: './node_modules/oxcow/dist/index.js', 'oxcow/v86': './node_modules/oxcow/dist/v86.js' };
    const map = `<script type="importmap">${JSON.stringify({ imports })}</script>`;
    await writeFile(join(path, 'index.html'), PAGE('./main.js').replace('<script', `${map}<script`));
    assert.deepEqual(await inBrowser(path), EXPECTED);
  });

  test('runs when Vite has built it', noBrowser, async () => {
    const path = await project('vite');
    await writeFile(join(path, 'index.html'), PAGE('./main.js'));
    await vite({ root: path, configFile: false, logLevel: 'error' });
    assert.deepEqual(await inBrowser(join(path, 'dist')), EXPECTED);
  });

  test('runs when webpack has built it', noBrowser, async () => {
    const path = await project('webpack');
    // As its own program does in the project's folder, but for a warning of every file that is as large as the engine.
    const where = { context: path, entry: './main.js', output: { path: join(path, 'dist') } };
    const compiler = webpack({ mode: 'production', ...where, performance: { hints: false } });
    const stats = await promisify(compiler.run.bind(compiler))();
    assert.equal(stats.hasErrors() || stats.hasWarnings(), false, stats.toString());
    await writeFile(join(path, 'dist/index.html'), PAGE('./main.js'));
    assert.deepEqual(await inBrowser(join(path, 'dist')), EXPECTED);
  });

  test('runs when esbuild has built it, with the worker as an entry and the module beside it', noBrowser, async () => {
    const path = await project('esbuild');
    await esbuild({
      absWorkingDir: path,
      entryPoints: { main: 'main.js', worker: 'oxcow/worker' },
      bundle: true,
      format: 'esm',
      minify: true,
      outdir: 'dist',
      logLevel: 'warning',
    });
    for (const name of ['oxcow_reader_bg.wasm', 'oxcow_web_bg.wasm']) {
      await cp(join(path, 'node_modules/oxcow/dist/wasm', name), join(path, 'dist/wasm', name));
    }
    await writeFile(join(path, 'dist/index.html'), PAGE('./main.js'));
    assert.deepEqual(await inBrowser(join(path, 'dist')), EXPECTED);
  });

  for (const [resolution, module] of [['nodenext', 'nodenext'], ['bundler', 'esnext']]) {
    test(`has types that TypeScript finds with moduleResolution ${resolution}`, async () => {
      const path = await project(`types-${resolution}`);
      await writeFile(join(path, 'program.ts'), `${PROGRAM}\nconst wrong: string = (await start()).open;\n`);
      const lib = 'ES2022,ESNext.Disposable,DOM,DOM.Iterable,DOM.AsyncIterable';
      const language = ['--noEmit', '--strict', '--target', 'es2022', '--lib', lib, '--types', ''];
      const options = [...language, '--module', module, '--moduleResolution', resolution];
      const compiling = run(process.execPath, [TYPESCRIPT, ...options, 'program.ts'], { cwd: path });
      const found = await compiling.catch((error) => error);
      // The one mistake is found, so the types are there.
      assert.match(found.stdout, /^program\.ts\(\d+,7\): error TS2322[^]*$/, found.stdout);
      assert.equal(found.stdout.match(/error TS/g).length, 1, found.stdout);
    });
  }
});
