// What the Rust crate oxcow-web exports, as wasm-bindgen writes it to dist/wasm/oxcow_web.js. Written by
// hand, so that the package type-checks before the engine is built; the tests run both together.

/** An array of bytes as the engine reads and writes it: every call may answer at once or by a promise. */
export interface EngineSource {
  name: string;
  /** As far as completed writes go. */
  length(): number;
  /** Every read is dear: fetch windows like these and keep them. Never for what is written to. */
  windows: EngineWindows | undefined;
  /** Whether `readInto` is to be used instead of `read`. */
  direct: boolean;
  read(offset: number, length: number): Uint8Array | Promise<Uint8Array>;
  /** `into` is the engine's memory, there only during the call. */
  readInto(offset: number, into: Uint8Array): number;
  /** Nobody waits for this answer of `read` any more. */
  cancel(answer: Promise<unknown>): void;
  /** `bytes` is the engine's memory, there only during the call. */
  write(offset: number, bytes: Uint8Array): void | Promise<void>;
  truncate(length: number): void | Promise<void>;
  /** The barrier; waits also for what nobody waits for any more. */
  flush(): void | Promise<void>;
  /** Resolves after the event loop has turned once. */
  turn(): Promise<void>;
}

/** In bytes, but for `parallel`. */
export interface EngineWindows {
  windowBytes: number;
  longestBytes: number;
  cacheBytes: number;
  parallel: number;
}

/** How a caller follows and stops an operation that may be long. */
export interface EngineControl {
  cancelled(): boolean;
  /** Resolves when `cancelled` changes, or when the operation is over; `undefined` where nothing can stop it. */
  stopped: Promise<void> | undefined;
  progress(done: number, total: number): void;
}

export interface EngineOptions {
  format: string | undefined;
  ignoreBacking: boolean;
  ignoreDataFile: boolean;
  cacheBytes: number | undefined;
  writable: boolean;
  repair: boolean;
}

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

/** Answers for a file that an image names; `undefined` refuses it. */
export type EngineResolve = (wanted: {
  role: 'backing' | 'data-file';
  name: string;
  base: string;
  format: string | undefined;
  depth: number;
}) => Promise<EngineSource | undefined>;

export class EngineImage {
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
  readonly writable: boolean;
  virtualSize(): bigint;
  usedSnapshot(): string | undefined;
  info(): Promise<unknown>;
  snapshots(): Promise<unknown>;
  bitmaps(): Promise<unknown>;
  map(start: bigint, length: bigint, limit: number, control: EngineControl): Promise<unknown>;
  overview(
    start: bigint,
    length: bigint,
    cells: number,
    control: EngineControl,
  ): Promise<{ shares: Uint8Array; totals: (number | bigint)[] }>;
  check(control: EngineControl): Promise<unknown>;
  read(offset: bigint, length: number, control: EngineControl): Promise<Uint8Array>;
  useSnapshot(idOrName: string | undefined): Promise<void>;
  write(offset: bigint, bytes: Uint8Array, control: EngineControl): Promise<void>;
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
  /** Writes what is left, durably. */
  finish(): Promise<void>;
  free(): void;
}

export function inspect(source: EngineSource, control: EngineControl): Promise<unknown>;

export default function init(options: { module_or_path: unknown }): Promise<unknown>;
export function initSync(options: { module: unknown }): unknown;
