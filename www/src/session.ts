// What the page has open: a file that was dropped, or an image that is kept here; the engine, what is still missing,
// and what is done to it.

import {
  httpSource,
  start,
  type Bitmap,
  type DiskImage,
  type Engine,
  type Format,
  type ImageInfo,
  type OpenOptions,
  type OxcowError,
  type RepairReport,
  type SafetyReport,
  type Size,
  type Snapshot,
  type Source,
  type Traffic,
  type WantedFile,
} from 'oxcow';

import { Fillings, sourceOf } from './filling.js';
import { markOf, recognise, type FileMark } from './mark.js';
import { prepareEngine, takeEngine } from './spare.js';
import { store, type About, type Lineage, type StoredImage } from './store.js';
import type { Watch } from './task.js';
import { asError } from './trouble.js';
import { baseName, stemOf } from './words.js';

export type Phase = 'empty' | 'opening' | 'open' | 'failed';

/** A file that the image names, and the file of the user's that stands in for it. */
export interface Dependency {
  wanted: WantedFile;
  file: File | undefined;
  /** Why that file does not do. */
  error?: OxcowError;
  /** It is on a server, and nothing is asked of the user. */
  url?: string;
}

/** Tells with the event `change` that something is different. */
export class Session extends EventTarget {
  phase: Phase = 'empty';
  /** The file that was dropped or chosen. */
  file: File | undefined;
  /** The image that is kept here, where that is what is open. */
  stored: StoredImage | undefined;
  /** The image at its active state. */
  base: DiskImage | undefined;
  report: SafetyReport | undefined;
  reportError: OxcowError | undefined;
  /** The state that is looked at: the image itself, or a snapshot of it. */
  image: DiskImage | undefined;
  /** The id of the snapshot that is looked at. */
  state: string | undefined;
  chain: ImageInfo[] = [];
  snapshots: Snapshot[] = [];
  bitmaps: Bitmap[] = [];
  dependencies: Dependency[] = [];
  error: OxcowError | undefined;
  /** The image is open without all files that it names, so its content cannot be trusted. */
  incomplete = false;
  /** The user wants to see the content even so. */
  acceptsIncomplete = false;
  traffic: Traffic = noTraffic();
  /** Counts what is read from: changes with every image, snapshot and supplied file. */
  view = 0;
  readonly fillings = new Fillings();

  #engine: Engine | undefined;
  #pool: File[] = [];
  #supplied = new Map<string, File>();
  #format: Format | undefined;
  /** Counts openings: an older one that is still under way is not to show its result. */
  #opening = 0;
  /** The end of the engine before this one: only then its files can be opened again. */
  #closed: Promise<unknown> = Promise.resolve();

  get name(): string {
    return this.stored?.name ?? this.file?.name ?? '';
  }

  get fileSize(): number {
    return this.stored?.size ?? this.file?.size ?? 0;
  }

  /** Whether what is open can be changed. */
  get writable(): boolean {
    return this.base?.writable ?? false;
  }

  /** It is kept here and can only be read, for it is marked as corrupt. */
  get marked(): boolean {
    return this.stored !== undefined && this.phase === 'open' && !this.incomplete && !this.writable;
  }

  /** Closes what is open and opens the image among `files`; the others stand in for files that it names. */
  async open(files: readonly File[]): Promise<void> {
    const first = files[0];
    if (!first) return;
    await this.#begin(async (engine, opening) => {
      this.#pool = [...files];
      this.file = files.length > 1 ? await this.#top(engine, files) : first;
      await this.#inspect(opening);
      await this.#open(opening);
    }, { file: first });
  }

  /** Closes what is open and opens an image that is kept here; `files` stand in for those that it names. */
  async openStored(stored: StoredImage, files: readonly File[] = []): Promise<void> {
    await this.#begin(async (_, opening) => {
      await this.#closed.catch(() => {}); // Told where it was closed.
      await this.fillings.letGo(stored.name);
      this.#pool = [...files];
      await this.#inspect(opening);
      await this.#open(opening);
    }, { stored });
  }

  async #begin(
    work: (engine: Engine, opening: number) => Promise<void>,
    what: { file?: File; stored?: StoredImage },
  ): Promise<void> {
    this.#reset();
    const opening = ++this.#opening;
    this.phase = 'opening';
    this.file = what.file;
    this.stored = what.stored;
    this.#changed();
    try {
      const engine = await takeEngine();
      if (opening !== this.#opening) return void engine.close();
      this.#engine = engine;
      await work(engine, opening);
    } catch (error) {
      this.#fail(opening, error);
    }
  }

  /** Takes `file` for what the image names, and opens it anew. */
  async supply(wanted: WantedFile, file: File): Promise<void> {
    this.#supplied.set(keyOfWanted(wanted), file);
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
    return this.dependencies.filter(({ file, url, error }) => (!file && !url) || error);
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
      if (this.writable) await this.#look(id);
      else await this.base?.useSnapshot(id);
      this.state = id;
      this.error = undefined;
    } catch (error) {
      this.error = asError(error);
    }
    this.view += 1;
    await this.touch();
  }

  /** An image that is written to stays at its active state; its snapshots are opened beside it. */
  async #look(id: string | undefined): Promise<void> {
    const { base, image: before } = this;
    const image = id === undefined ? base : await base?.openSnapshot(id);
    this.image = image;
    if (before !== base) await before?.close();
  }

  /** A state of the disk, to be read beside what is looked at; close it by what is given with it. */
  async openState(id: string | undefined): Promise<{ image: DiskImage; close(): Promise<void> }> {
    const { base, file } = this;
    if (!base) throw new Error('No image is open');
    if (this.writable) {
      if (id === undefined) return { image: base, close: async () => {} };
      const image = await base.openSnapshot(id);
      return { image, close: () => image.close() };
    }
    const source: Source | undefined = this.stored ? { opfs: this.stored.path } : file;
    const image = await (this.#engine as Engine).open(source as Source, {
      ...(this.#format && { format: this.#format }),
      ...(this.incomplete ? { backing: 'ignore', dataFile: 'ignore' } : { resolve: this.#resolver([]) }),
    });
    if (id !== undefined) await image.useSnapshot(id);
    return { image, close: () => image.close() };
  }

  /** Changes the image, makes that durable, and shows what it is now. */
  async change<T>(work: (image: DiskImage) => Promise<T>): Promise<T> {
    const { base, stored } = this;
    if (!base || !stored) throw new Error('No image is open');
    // A state that is looked at keeps its snapshot from being deleted, and a filling has its own order of things.
    if (this.state !== undefined) await this.useSnapshot(undefined);
    await this.fillings.letGo(stored.name);
    try {
      const result = await work(base);
      await base.flush();
      return result;
    } finally {
      if (base === this.base) await this.#refresh();
    }
  }

  /** Keeps the disk as it is now. */
  async createSnapshot(name: string): Promise<void> {
    await this.change(async (image) => {
      const { id } = await image.createSnapshot(name);
      await this.#trace(({ parents, current }) => ({ parents: { ...parents, [id]: current }, current: id }));
    });
  }

  async applySnapshot(id: string): Promise<void> {
    await this.change(async (image) => {
      await image.applySnapshot(id);
      await this.#trace(({ parents }) => ({ parents, current: id }));
    });
  }

  async deleteSnapshot(id: string): Promise<void> {
    await this.change(async (image) => {
      await image.deleteSnapshot(id);
      await this.#trace(({ parents, current }) => {
        const { [id]: above = null, ...others } = parents;
        const instead = (from: string | null) => (from === id ? above : from);
        return {
          parents: Object.fromEntries(Object.entries(others).map(([child, parent]) => [child, instead(parent)])),
          current: instead(current),
        };
      });
    });
  }

  /** Remembers which state came from which. */
  async #trace(next: (lineage: Lineage) => Lineage): Promise<void> {
    const { stored } = this;
    if (!stored) return;
    const about = await store.about(stored.name);
    const lineage = next(about.lineage ?? { parents: {}, current: null });
    stored.about = { ...about, lineage };
    await store.setAbout(stored.name, stored.about);
  }

  /** Repairs the image that is kept here, also one that is marked as corrupt. */
  async repair(what: 'leaks' | 'all', watch: Watch): Promise<RepairReport> {
    if (this.writable) return this.change((image) => image.repair(what, watch));
    const { stored } = this;
    const engine = this.#engine;
    if (!stored || !engine) throw new Error('No image is open');
    await this.base?.close();
    this.base = this.image = undefined;
    try {
      const image = await engine.open({ opfs: stored.path }, { repair: true, ...this.#options([]), signal: watch.signal });
      try {
        return await image.repair(what, watch);
      } finally {
        await image.close();
      }
    } finally {
      await this.#reopen();
    }
  }

  /** Makes an overlay over the file that is open: kept here, writable, and at once. */
  async makeCopy(): Promise<void> {
    const { file, base } = this;
    const engine = this.#engine;
    if (!file || !base || !engine) throw new Error('No image is open');
    await store.persist();
    const name = await store.freshName(`${stemOf(file.name)}-copy.qcow2`);
    const files: Record<string, FileMark> = { [keyOf(1, 'backing', file.name)]: await markOf(file) };
    for (const { wanted, file: used } of this.dependencies) {
      if (used) files[keyOf(wanted.depth + 1, wanted.role, wanted.name)] = await markOf(used);
    }
    const format = this.chain[0]?.format;
    await store.unfinished(async (path) => {
      const image = await engine.overlay({ opfs: path }, file, {
        backingName: file.name,
        ...(format === 'raw' || format === 'qcow2' ? { backingFormat: format } : {}),
        resolve: this.#resolver([]),
      });
      await image.close();
      await store.adopt(path, name, { files });
    });
    await this.#openNew(name, this.#used());
  }

  /** Keeps the disk that is open here: as a qcow2 image of its own, or its file as it is. */
  async importImage(how: 'convert' | 'copy', watch: Watch): Promise<void> {
    const { file, base } = this;
    if (!file) throw new Error('No file is open');
    await store.persist();
    const name = await store.freshName(`${stemOf(file.name)}.qcow2`);
    await store.unfinished(async (path) => {
      if (how === 'copy') await store.copy(file, path, watch);
      else await base?.convert({ opfs: path }, { format: 'qcow2', ...watch });
      await store.adopt(path, name, {});
    });
    await this.#openNew(name, []);
  }

  /** Begins a clone of what is at `url`, and opens it; it fills itself from then on. */
  async cloneUrl(url: string, signal: AbortSignal): Promise<void> {
    await store.persist();
    const source = await httpSource(url, { signal });
    const { origin, pathname } = new URL(url, document.baseURI);
    const name = await store.freshName(`${stemOf(decodeURIComponent(baseName(pathname)) || 'clone')}.qcow2`);
    const { size, etag, lastModified } = source;
    const mark = { url, size, ...(etag && { etag }), ...(lastModified && { lastModified }) };
    const engine = await start();
    try {
      await store.unfinished(async (path) => {
        // What may be secret in the URL is not for the image.
        const image = await engine.clone({ opfs: path }, source, { backingName: `${origin}${pathname}`, signal });
        await image.close();
        await store.adopt(path, name, { url: mark });
      });
    } finally {
      await engine.close();
    }
    await this.#openNew(name, []);
  }

  async #openNew(name: string, files: readonly File[]): Promise<void> {
    const stored = (await store.list()).find((image) => image.name === name);
    if (stored) await this.openStored(stored, files);
  }

  /** Has every stored clone fill itself that is not full yet. */
  async fillAll(): Promise<void> {
    for (const { name, about } of await store.list()) {
      if (about.url && name !== this.stored?.name) this.fillings.begin(name, about.url);
    }
  }

  /** Goes on filling the clone that is open. */
  fillThis(): void {
    if (this.stored?.about.url && this.base?.writable) this.fillings.fill(this.stored.name, this.base);
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

  /** Closes what is open; what was changed is durable when it is done. */
  async close(): Promise<void> {
    this.#opening += 1;
    this.#reset();
    this.#changed();
    await this.#closed.catch(() => {}); // Whatever it was, what was flushed is there.
    prepareEngine();
    await this.fillAll();
    this.#changed();
  }

  async #reopen(): Promise<void> {
    const opening = ++this.#opening;
    try {
      if (this.stored) await this.fillings.letGo(this.stored.name);
      await this.base?.close();
      this.base = this.image = this.state = undefined;
      await this.#open(opening);
    } catch (error) {
      this.#fail(opening, error);
    }
  }

  async #inspect(opening: number): Promise<void> {
    const source = this.#source();
    if (!this.#engine || !source) return;
    try {
      const report = await this.#engine.inspect(source);
      if (opening === this.#opening) this.report = report;
    } catch (error) {
      if (opening === this.#opening) this.reportError = asError(error);
    }
    // The report is on the page before anything that the image names is looked for.
    this.#changed();
  }

  #source(): Source | undefined {
    return this.stored ? { opfs: this.stored.path } : this.file;
  }

  /** Answers what an image asks for, and notes it in `dependencies`. */
  #resolver(dependencies: Dependency[]): NonNullable<OpenOptions['resolve']> {
    const used = new Set<File>(this.file ? [this.file] : []);
    const about: About = this.stored?.about ?? {};
    return async (wanted) => {
      const dependency: Dependency = { wanted, file: undefined };
      dependencies.push(dependency);
      try {
        if (about.url && wanted.depth === 1 && wanted.role === 'backing') {
          dependency.url = about.url.url;
          return await sourceOf(about.url);
        }
        const found = this.#supplied.get(keyOfWanted(wanted)) ?? this.#named(wanted, used);
        if (!found) return undefined;
        used.add(found);
        dependency.file = found;
        const mark = about.files?.[keyOf(wanted.depth, wanted.role, wanted.name)];
        if (mark) await recognise(found, mark);
        return found;
      } catch (error) {
        dependency.error = asError(error);
        throw error;
      }
    };
  }

  #options(dependencies: Dependency[]): OpenOptions {
    return { ...(this.#format && { format: this.#format }), resolve: this.#resolver(dependencies) };
  }

  /** The files that stand in for what the image that is open names, itself first. */
  #used(): File[] {
    const others = this.dependencies.flatMap(({ file }) => file ?? []);
    return this.file ? [this.file, ...others] : others;
  }

  async #open(opening: number): Promise<void> {
    const source = this.#source();
    const engine = this.#engine;
    if (!engine || !source) return;
    const dependencies: Dependency[] = [];
    let image: DiskImage;
    let incomplete = false;
    try {
      image = await this.#openBest(engine, source, dependencies);
    } catch (error) {
      const last = dependencies.at(-1);
      if (!last) throw error;
      if (last.file) last.error ??= asError(error);
      // What the image says of itself can be shown without the files that it names.
      const format = this.#format && { format: this.#format };
      image = await engine.open(source, { ...format, backing: 'ignore', dataFile: 'ignore' });
      incomplete = true;
    }
    if (opening !== this.#opening) return void image.close();

    this.base = this.image = image;
    this.state = undefined;
    this.incomplete = incomplete;
    this.dependencies = dependencies;
    await this.#read(image);
    if (opening !== this.#opening) return;
    this.error = undefined;
    this.phase = 'open';
    this.view += 1;
    await this.touch();
    this.fillThis();
  }

  /** Open for writing where it is kept here; one that is marked as corrupt can be read until it is repaired. */
  async #openBest(engine: Engine, source: Source, dependencies: Dependency[]): Promise<DiskImage> {
    if (!this.stored) return engine.open(source, this.#options(dependencies));
    try {
      return await engine.open(source, { ...this.#options(dependencies), writable: true });
    } catch (error) {
      if (!['corrupt', 'read-only', 'refused'].includes(asError(error).code)) throw error;
      dependencies.length = 0;
      return engine.open(source, this.#options(dependencies));
    }
  }

  async #read(image: DiskImage): Promise<void> {
    [this.chain, this.snapshots, this.bitmaps] = await Promise.all([
      image.info(),
      image.snapshots(),
      image.bitmaps().catch(() => []),
    ]);
  }

  /** After a change: everything that is shown may be different. */
  async #refresh(): Promise<void> {
    const { base, stored } = this;
    if (!base || !stored) return;
    const found = (await store.list()).find(({ name }) => name === stored.name);
    if (found) this.stored = found;
    await this.#read(base);
    this.view += 1;
    await this.touch();
    this.fillThis();
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
    const engine = this.#engine;
    const filled = this.stored && this.fillings.letGo(this.stored.name);
    if (engine) this.#closed = Promise.resolve(filled).then(() => engine.close());
    this.#engine = undefined;
    this.#pool = [];
    this.#supplied.clear();
    this.#format = undefined;
    this.phase = 'empty';
    this.file = undefined;
    this.stored = undefined;
    this.report = undefined;
    this.reportError = undefined;
    this.base = this.image = undefined;
    this.state = undefined;
    this.chain = [];
    this.snapshots = [];
    this.bitmaps = [];
    this.dependencies = [];
    this.error = undefined;
    this.incomplete = false;
    this.acceptsIncomplete = false;
    this.traffic = noTraffic();
  }

  #changed(): void {
    this.dispatchEvent(new Event('change'));
  }
}

function keyOfWanted(wanted: WantedFile): string {
  return `${wanted.base} ${keyOf(wanted.depth, wanted.role, wanted.name)}`;
}

/** Who asks for a file, and how it is called there. */
function keyOf(depth: number, role: WantedFile['role'], name: string): string {
  return `${role} ${depth} ${name}`;
}

function noTraffic(): Traffic {
  return { bytes: 0, reads: 0, written: 0, writes: 0 };
}
