// What the Rust crate oxcow-web exports, as wasm-bindgen writes it to dist/wasm/oxcow_web.js. Written by
// hand, so that the package type-checks before the engine is built; the tests run both together.

/** An array of bytes that the engine reads: `read` may answer at once or by a promise. */
export interface EngineSource {
  name: string;
  size: number;
  /** Every read is dear: fetch windows like these and keep them. */
  windows: EngineWindows | undefined;
  read(offset: number, length: number): Uint8Array | Promise<Uint8Array>;
  /** Nobody waits for this answer of `read` any more. */
  cancel(answer: Promise<unknown>): void;
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
  free(): void;
}

export function inspect(source: EngineSource, control: EngineControl): Promise<unknown>;

export default function init(options: { module_or_path: unknown }): Promise<unknown>;
export function initSync(options: { module: unknown }): unknown;
