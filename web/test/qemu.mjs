// Images made by QEMU's own tools, which also say what is in them.

import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

function runs(program) {
  try {
    execFileSync(program, ['--version'], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
}

/** Why tests that need QEMU's tools are left out; `false` where they are there. */
export const withoutQemu = runs('qemu-img') && runs('qemu-io') ? false : 'qemu-img and qemu-io are not installed';

export class Images {
  folder = mkdtempSync(join(tmpdir(), 'oxcow-package-'));

  path(name) {
    return join(this.folder, name);
  }

  img(...args) {
    return execFileSync('qemu-img', args, { cwd: this.folder, encoding: 'utf8' });
  }

  /** qemu-img's JSON; `check` tells what it found by its exit code, too. */
  json(command, ...args) {
    try {
      return JSON.parse(this.img(command, '--output=json', ...args));
    } catch (error) {
      if (!error.stdout) throw error;
      return JSON.parse(error.stdout);
    }
  }

  create(name, size, ...options) {
    this.img('create', '-q', '-f', 'qcow2', ...options, name, size);
    return this.path(name);
  }

  io(name, ...commands) {
    const args = commands.flatMap((command) => ['-c', command]);
    execFileSync('qemu-io', [...args, name], { cwd: this.folder, stdio: 'ignore' });
  }

  /** The bytes that qemu-img reads out of an image. */
  raw(name, ...options) {
    this.img('convert', ...options, '-O', 'raw', name, 'oracle.raw');
    return readFileSync(this.path('oracle.raw'));
  }

  remove() {
    rmSync(this.folder, { recursive: true, force: true });
  }
}

/** qemu-img's JSON with its names as the package gives them. */
export function camelCase(value) {
  if (Array.isArray(value)) return value.map(camelCase);
  if (typeof value !== 'object' || value === null) return value;
  const entries = Object.entries(value).map(([key, content]) => [
    key.replace(/-(\w)/g, (_, letter) => letter.toUpperCase()),
    camelCase(content),
  ]);
  return Object.fromEntries(entries);
}
