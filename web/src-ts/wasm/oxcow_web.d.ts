// What the Rust crate oxcow-web exports with its feature `write`, as wasm-bindgen writes it to dist/wasm/oxcow_web.js:
// what the module that only reads has, and more.

import { EngineImage as EngineReader } from './oxcow_reader.js';
import type { EngineControl, EngineOptions, EngineResolve, EngineSource } from './oxcow_reader.js';

export { default, initSync, inspect } from './oxcow_reader.js';

export interface EngineCreateOptions {
  size: bigint | undefined;
  version: string | undefined;
  clusterSize: number | undefined;
  refcountBits: number | undefined;
  extendedL2: boolean;
  lazyRefcounts: boolean;
  compressionType: string | undefined;
  preallocation: string | undefined;
  backing: EngineSource | undefined;
  backingName: string | undefined;
  backingFormat: string | undefined;
  dataFile: EngineSource | undefined;
  dataFileRaw: boolean;
}

/** Times in milliseconds. */
export interface EngineHydrateOptions {
  batchBytes: number | undefined;
  parallel: number | undefined;
  limitRate: number | undefined;
  quiet: number | undefined;
  patience: number | undefined;
  commitBytes: number | undefined;
  commitEvery: number | undefined;
  retries: number | undefined;
  retryDelay: number | undefined;
  keepBacking: boolean;
}

export class EngineImage extends EngineReader {
  static open(
    source: EngineSource,
    options: EngineOptions,
    resolve: EngineResolve,
    control: EngineControl,
  ): Promise<EngineImage>;
  static create(
    source: EngineSource,
    wanted: EngineCreateOptions,
    options: EngineOptions,
    resolve: EngineResolve,
    control: EngineControl,
  ): Promise<EngineImage>;
  write(offset: bigint, bytes: Uint8Array, control: EngineControl): Promise<void>;
  /** As `write`, at once and over data in place. 0: not done, for whatever reason; 2: done, and `turnIfDue` is due. */
  writeNow(offset: number, bytes: Uint8Array): 0 | 1 | 2;
  writeCompressed(offset: bigint, bytes: Uint8Array, control: EngineControl): Promise<void>;
  writeZeroes(offset: bigint, length: bigint, unmap: boolean, control: EngineControl): Promise<void>;
  discard(offset: bigint, length: bigint, control: EngineControl): Promise<void>;
  flush(): Promise<void>;
  resize(size: bigint, shrink: boolean, preallocation: string | undefined): Promise<void>;
  repair(leaksOnly: boolean, control: EngineControl): Promise<unknown>;
  createSnapshot(name: string, dateSec: number, dateNsec: number, vmClockNsec: bigint): Promise<string>;
  applySnapshot(idOrName: string): Promise<void>;
  deleteSnapshot(idOrName: string): Promise<void>;
  openSnapshot(idOrName: string): Promise<EngineImage>;
  fleece(
    copies: EngineSource,
    breakView: boolean,
    timeout: number | undefined,
    control: EngineControl,
  ): Promise<EngineImage>;
  hydrate(options: EngineHydrateOptions, control: EngineControl): Promise<string | undefined>;
  hydration(): Promise<unknown>;
  /** Whether there is a hydration under way. */
  pauseHydration(paused: boolean): boolean;
  cancelHydration(): void;
  setCopyOnRead(on: boolean): void;
  convert(
    target: EngineSource,
    wanted: EngineCreateOptions | undefined,
    compress: boolean,
    control: EngineControl,
  ): Promise<void>;
  export(wanted: EngineCreateOptions, control: EngineControl): Promise<EngineExport>;
  /** Writes what is left, durably. */
  finish(): Promise<void>;
}

/** It keeps the disk that it reads by itself. */
export class EngineExport {
  fileSize(): bigint;
  read(offset: bigint, length: number, control: EngineControl): Promise<Uint8Array>;
  free(): void;
}
