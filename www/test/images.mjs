// Disk images made by QEMU's own tools, which are also asked what is in them.

import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { closeSync, createReadStream, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';

/** A folder of images that is gone when the tests are. */
export class Images {
  folder = mkdtempSync(join(tmpdir(), 'oxcow-page-'));

  path(name) {
    return join(this.folder, name);
  }

  qemuImg(...args) {
    return execFileSync('qemu-img', args, { cwd: this.folder, encoding: 'utf8' });
  }

  create(name, size, ...options) {
    this.qemuImg('create', '-q', '-f', 'qcow2', ...options, name, size);
    return this.path(name);
  }

  /** Runs qemu-io commands on an image. */
  io(name, ...commands) {
    const args = commands.flatMap((command) => ['-c', command]);
    execFileSync('qemu-io', ['-f', 'qcow2', ...args, name], { cwd: this.folder, stdio: 'ignore' });
  }

  /** What qemu-img makes of the image as raw, as a file. */
  raw(name, ...options) {
    const out = `${name}.${options.length}.oracle`;
    this.qemuImg('convert', ...options, '-O', 'raw', name, out);
    return this.path(out);
  }

  rawBytes(name, offset, length) {
    return readFileSync(this.raw(name)).subarray(offset, offset + length);
  }

  /** Overwrites bytes of a file. */
  damage(name, offset, bytes) {
    const file = openSync(this.path(name), 'r+');
    writeSync(file, bytes, 0, bytes.length, offset);
    closeSync(file);
  }

  write(name, bytes) {
    writeFileSync(this.path(name), bytes);
    return this.path(name);
  }

  remove() {
    rmSync(this.folder, { recursive: true, force: true });
  }
}

export async function sha256(path) {
  const hash = createHash('sha256');
  await pipeline(createReadStream(path), hash);
  return hash.digest('hex');
}
