/**
 * Disk images in Node: the same engine, in the calling thread.
 *
 * @example
 * import { fileSource, start } from 'oxcow';
 * const engine = await start();
 * const image = await engine.open(fileSource('disk.qcow2'));
 *
 * @module
 */

import { closeSync, fstatSync, openSync, readFileSync, readSync } from 'node:fs';

import { loadEngine, LocalEngine, type ModuleSource } from './local.js';
import type { CustomSource, Engine } from './types.js';

export { OxcowError, type ErrorCode, type Place } from './errors.js';
export { httpSource } from './http/source.js';
export type { ModuleSource } from './local.js';
export * from './types.js';

let loaded: Promise<void> | undefined;

/** Starts an engine; the first call loads the module. */
export async function start(options: { module?: ModuleSource } = {}): Promise<Engine> {
  loaded ??= loadEngine(options.module ?? readFileSync(new URL('./wasm/oxcow_web_bg.wasm', import.meta.url)));
  await loaded;
  return new LocalEngine();
}

/** A file on disk as a source. `close` it after the image. */
export function fileSource(path: string): CustomSource & { close(): void } {
  const file = openSync(path, 'r');
  return {
    name: path,
    size: fstatSync(file).size,
    windowed: false,
    read(offset, length) {
      const bytes = new Uint8Array(length);
      let done = 0;
      while (done < length) {
        const count = readSync(file, bytes, done, length - done, offset + done);
        if (count === 0) break;
        done += count;
      }
      return bytes.subarray(0, done);
    },
    close: () => closeSync(file),
  };
}
