// <ox-download>: saves the disk: as raw bytes while they are read, or as a qcow2 image of its own.

import { opfs, type DiskImage } from 'oxcow';
import { html, LitElement, nothing, type PropertyValues, type TemplateResult } from 'lit';

import { icons } from '../icons.js';
import { saveFile, saveRaw } from '../save.js';
import { store } from '../store.js';
import { base } from '../styles.js';
import { Task, type Watch } from '../task.js';
import { exact, size } from '../words.js';

const FORMATS = {
  raw: { name: 'raw', ending: 'raw', what: 'the disk’s bytes as they are; written while they are read, so it may be larger than memory' },
  qcow2: { name: 'qcow2', ending: 'qcow2', what: 'only what is stored, readable by QEMU' },
  compressed: { name: 'compressed qcow2', ending: 'qcow2', what: 'the smallest, for archives and for sending' },
} as const;

type As = keyof typeof FORMATS;

/** The share of the work that is done when a converted image only has to be written out. */
const CONVERTED = 0.8;

export class Download extends LitElement {
  static override properties = {
    image: { attribute: false },
    view: { attribute: false },
    stem: { attribute: false },
    what: { attribute: false },
    _as: { state: true },
    _saved: { state: true },
  };
  declare image: DiskImage | undefined;
  declare view: number;
  /** The name of the file to save, without its ending. */
  declare stem: string;
  /** What of the image it is, in words. */
  declare what: string;
  declare _as: As;
  /** What was saved, in words. */
  declare _saved: string;

  #task = new Task(this);

  static override styles = base;

  constructor() {
    super();
    this.view = 0;
    this._as = 'raw';
    this._saved = '';
  }

  override willUpdate(changed: PropertyValues<this>): void {
    if (!changed.has('image') && !changed.has('view')) return;
    this.#task.cancel();
    this.#task.forget();
    this._saved = '';
  }

  override render(): TemplateResult {
    const { name, ending } = FORMATS[this._as];
    return html`<div class="stack">
      <p class="small muted">The whole disk with everything below it, ${this.what}, as one file that needs no other.</p>
      ${this.#task.running
        ? this.#task.progress()
        : html`<fieldset>
              <legend class="hide">Format</legend>
              ${(Object.keys(FORMATS) as As[]).map(
                (as) => html`<label class="choice"
                  ><input type="radio" name="as" .checked=${this._as === as} @change=${() => (this._as = as)} /><span
                    >${FORMATS[as].name}${as === 'raw' ? `, ${size(this.image?.virtualSize ?? 0)}` : ''}</span
                  ><small class="muted">${FORMATS[as].what}</small></label
                >`,
              )}
            </fieldset>
            <div class="row">
              <button class="primary" @click=${() => this.#save()}>Save as ${name}</button>
              <code class="small name">${this.stem}.${ending}</code>
            </div>`}
      ${this.#task.error?.code === 'cancelled'
        ? html`<p class="note" role="status">${icons.info}<span>Cancelled. The file is not complete.</span></p>`
        : this.#task.problem('Not saved')}
      <div role="status">${this._saved ? html`<p class="note ok">${icons.ok}<span><strong>Saved.</strong> ${this._saved}.</span></p>` : nothing}</div>
    </div>`;
  }

  async #save(): Promise<void> {
    const { image, _as: as } = this;
    if (!image) return;
    const name = `${this.stem}.${FORMATS[as].ending}`;
    this._saved = '';
    await this.#task.run('Saving', async (watch) => {
      let length = Number(image.virtualSize);
      const saved =
        as === 'raw'
          ? await saveRaw(image, name, watch)
          : await this.#converted(image, as, name, watch, (file) => (length = file.size));
      if (saved) this._saved = exact(length);
    });
  }

  /** Converts into a file of the page's own, which is removed when it has been written out. */
  #converted(image: DiskImage, as: As, name: string, watch: Watch, tell: (file: File) => void): Promise<boolean> {
    const part = (from: number, share: number): Watch => ({
      signal: watch.signal,
      onProgress: (done, total) => watch.onProgress(from + (total > 0 ? done / total : 1) * share, 1),
    });
    return store.unfinished((path) =>
      saveFile(name, part(CONVERTED, 1 - CONVERTED), async () => {
        await image.convert({ opfs: path }, { format: 'qcow2', compress: as === 'compressed', ...part(0, CONVERTED) });
        const file = await opfs.file(path);
        tell(file);
        return file;
      }),
    );
  }
}

customElements.define('ox-download', Download);
