/**
 * Disk images in the browser. The engine runs in a dedicated worker; nothing is read but what is asked for,
 * and nothing named inside an image is opened unless the caller supplies it.
 *
 * @example
 * import { start } from 'oxcow';
 * const engine = await start();
 * const image = await engine.open(file); // a File that was dropped or chosen
 * console.log(await image.info());
 *
 * @module
 */

import type { ModuleSource } from './modules.js';
import { RemoteEngine } from './remote.js';
import type { Engine } from './types.js';

export { OxcowError, type ErrorCode, type Place } from './errors.js';
export { httpSource } from './http/source.js';
export type { ModuleSource } from './modules.js';
export { memoryStorage } from './storage/memory.js';
export { opfs, type StorageEstimate, type StoredFile } from './storage/opfs.js';
export type { CustomStorage, MemoryStorage, OpfsFile, Storage } from './storage/types.js';
export * from './types.js';
export type * from './writing.js';

export interface StartOptions {
  /** A worker that runs `oxcow/worker`, for bundlers that do not find it by themselves. */
  worker?: Worker;
  /**
   * The compiled engine (`oxcow/oxcow.wasm`), or where it is, if not beside the worker. It is loaded when something is to
   * be written, or at once where only this one is given.
   */
  module?: ModuleSource;
  /** The part of it that only reads (`oxcow/oxcow-reader.wasm`) and is loaded at once, if not beside the worker. */
  reader?: ModuleSource;
}

/** Starts an engine in a worker of its own. */
export async function start(options: StartOptions = {}): Promise<Engine> {
  const worker = options.worker ?? new Worker(new URL('./worker.js', import.meta.url), { type: 'module' });
  return RemoteEngine.start(worker, options);
}
