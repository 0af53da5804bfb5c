// What the page has open: the files it was given, the engine, the image, and what is still missing.

import {
  OxcowError,
  start,
  type Bitmap,
  type DiskImage,
  type Engine,
  type Format,
  type ImageInfo,
  type SafetyReport,
  type Size,
  type Snapshot,
  type Traffic,
  type WantedFile,
} from 'oxcow';

import { baseName } from './words.js';

export type Phase = 'empty' | 'opening' | 'open' | 'failed';

/** A file that the image names, and the file of the user's that stands in for it. */
export interface Dependency {
  wanted: WantedFile;
  file: File | undefined;
  /** Why that file does not do. */
  error?: OxcowError;
}

/** Tells with the event `change` that something is different. */
export class Session extends EventTarget {
  phase: Phase = 'empty';
  file: File | undefined;
  report: SafetyReport | undefined;
  reportError: OxcowError | undefined;
  image: DiskImage | undefined;
  chain: ImageInfo[] = [];
  snapshots: Snapshot[] = [];
  bitmaps: Bitmap[] = [];
  dependencies: Dependency[] = [];
  error: OxcowError | undefined;
  /** The image is open without all files that it names, so its content cannot be trusted. */
  incomplete = false;
  /** The user wants to see the content even so. */
  acceptsIncomplete = false;
  traffic: Traffic = { bytes: 0, reads: 0 };
  /** Counts what is read from: changes with every image, snapshot and supplied file. */
  view = 0;

  #engine: Engine | undefined;
  #pool: File[] = [];
  #supplied = new Map<string, File>();
  #format: Format | undefined;
  /** Counts openings: an older one that is still under way is not to show its result. */
  #opening = 0;

  /** Closes what is open and opens the image among `files`; the others stand in for files that it names. */
  async open(files: readonly File[]): Promise<void> {
    const first = files[0];
    if (!first) return;
    this.#reset();
    const opening = ++this.#opening;
    this.phase = 'opening';
    this.file = first;
    this.#changed();
    try {
      const engine = await start();
      if (opening !== this.#opening) return void engine.close();
      this.#engine = engine;
      this.#pool = [...files];
      this.file = files.length > 1 ? await this.#top(engine, files) : first;
      await this.#inspect(opening);
      await this.#open(opening);
    } catch (error) {
      this.#fail(opening, error);
    }
  }

  /** Takes `file` for what the image names, and opens it anew. */
  async supply(wanted: WantedFile, file: File): Promise<void> {
    this.#supplied.set(keyOf(wanted), file);
    await this.#reopen();
  }

  /** Takes more files: those whose names the image asks for. Says whether any was. */
  async supplyByName(files: readonly File[]): Promise<boolean> {
    const missing = this.missing.map(({ wanted }) => baseName(wanted.name));
    if (!files.some((file) => missing.includes(file.name))) return false;
    this.#pool.unshift(...files);
    this.#supplied.clear();
    await this.#reopen();
    return true;
  }

  get missing(): Dependency[] {
    return this.dependencies.filter(({ file, error }) => !file || error);
  }

  /** Whether the disk's content is all there, or the user wants it as it is. */
  get readable(): boolean {
    return this.phase === 'open' && (!this.incomplete || this.acceptsIncomplete) && !this.dataMissing;
  }

  /** The image keeps the content in a file that is not there. */
  get dataMissing(): boolean {
    return this.incomplete && this.missing.some(({ wanted }) => wanted.role === 'data-file' && wanted.depth === 0);
  }

  get virtualSize(): Size {
    return this.image?.virtualSize ?? 0;
  }

  acceptIncomplete(): void {
    this.acceptsIncomplete = true;
    this.view += 1;
    this.#changed();
  }

  /** Opens the file as plain bytes, whatever it looks like. */
  async openAsRaw(): Promise<void> {
    this.#format = 'raw';
    await this.#reopen();
  }

  async useSnapshot(id: string | undefined): Promise<void> {
    try {
      await this.image?.useSnapshot(id);
      this.error = undefined;
    } catch (error) {
      this.error = asError(error);
    }
    this.view += 1;
    await this.touch();
  }

  /** Asks how much was read so far. */
  async touch(): Promise<void> {
    const { image } = this;
    if (!image) return;
    try {
      const traffic = await image.traffic();
      if (image === this.image) this.traffic = traffic;
    } catch {
      // Closed meanwhile: the next image has its own count.
    }
    this.#changed();
  }

  close(): void {
    this.#opening += 1;
    this.#reset();
    this.#changed();
  }

  async #reopen(): Promise<void> {
    const opening = ++this.#opening;
    try {
      await this.image?.close();
      this.image = undefined;
      await this.#open(opening);
    } catch (error) {
      this.#fail(opening, error);
    }
  }

  async #inspect(opening: number): Promise<void> {
    if (!this.#engine || !this.file) return;
    try {
      const report = await this.#engine.inspect(this.file);
      if (opening === this.#opening) this.report = report;
    } catch (error) {
      if (opening === this.#opening) this.reportError = asError(error);
    }
    // The report is on the page before anything that the image names is looked for.
    this.#changed();
  }

  async #open(opening: number): Promise<void> {
    const { file } = this;
    const engine = this.#engine;
    if (!engine || !file) return;
    const used = new Set<File>([file]);
    const dependencies: Dependency[] = [];
    const format = this.#format && { format: this.#format };
    const resolve = (wanted: WantedFile): File | undefined => {
      const found = this.#supplied.get(keyOf(wanted)) ?? this.#named(wanted, used);
      if (found) used.add(found);
      dependencies.push({ wanted, file: found });
      return found;
    };

    let image: DiskImage;
    let incomplete = false;
    try {
      image = await engine.open(file, { ...format, resolve });
    } catch (error) {
      const last = dependencies.at(-1);
      if (!last) throw error;
      if (last.file) last.error = asError(error);
      // What the image says of itself can be shown without the files that it names.
      image = await engine.open(file, { ...format, backing: 'ignore', dataFile: 'ignore' });
      incomplete = true;
    }
    if (opening !== this.#opening) return void image.close();

    this.image = image;
    this.incomplete = incomplete;
    this.dependencies = dependencies;
    [this.chain, this.snapshots, this.bitmaps] = await Promise.all([
      image.info(),
      image.snapshots(),
      image.bitmaps().catch(() => []),
    ]);
    if (opening !== this.#opening) return;
    this.error = undefined;
    this.phase = 'open';
    this.view += 1;
    await this.touch();
  }

  #fail(opening: number, error: unknown): void {
    if (opening !== this.#opening) return;
    this.phase = 'failed';
    this.error = asError(error);
    this.#changed();
  }

  /** The file among those given that has the name which the image asks for. */
  #named(wanted: WantedFile, used: ReadonlySet<File>): File | undefined {
    const name = baseName(wanted.name);
    return this.#pool.find((file) => file.name === name && !used.has(file));
  }

  /** Of several files the one that no other names: the top of the chain. */
  async #top(engine: Engine, files: readonly File[]): Promise<File> {
    const named = new Set<string>();
    for (const file of files) {
      const { wants } = await engine.inspect(file);
      for (const { name } of wants) named.add(baseName(name));
    }
    return files.find((file) => !named.has(file.name)) ?? (files[0] as File);
  }

  #reset(): void {
    void this.#engine?.close();
    this.#engine = undefined;
    this.#pool = [];
    this.#supplied.clear();
    this.#format = undefined;
    this.phase = 'empty';
    this.file = undefined;
    this.report = undefined;
    this.reportError = undefined;
    this.image = undefined;
    this.chain = [];
    this.snapshots = [];
    this.bitmaps = [];
    this.dependencies = [];
    this.error = undefined;
    this.incomplete = false;
    this.acceptsIncomplete = false;
    this.traffic = { bytes: 0, reads: 0 };
  }

  #changed(): void {
    this.dispatchEvent(new Event('change'));
  }
}

function keyOf(wanted: WantedFile): string {
  return `${wanted.role} ${wanted.depth} ${wanted.base} ${wanted.name}`;
}

export function asError(error: unknown): OxcowError {
  return error instanceof OxcowError ? error : new OxcowError('internal', error instanceof Error ? error.message : String(error));
}
