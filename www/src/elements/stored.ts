// <ox-stored>: the images that are kept in this browser, how much room they take, and what can be done with them.

import type { StorageEstimate } from 'oxcow';
import { css, html, LitElement, nothing, type PropertyValues, type TemplateResult } from 'lit';

import { icons } from '../icons.js';
import { saveFile } from '../save.js';
import type { Session } from '../session.js';
import { store, type StoredImage } from '../store.js';
import { base } from '../styles.js';
import { Task } from '../task.js';
import { exact, percent, size } from '../words.js';
import { ask } from './dialog.js';
import './filling.js';

export class Stored extends LitElement {
  static override properties = {
    session: { attribute: false },
    _images: { state: true },
    _estimate: { state: true },
  };
  declare session: Session;
  declare _images: StoredImage[] | undefined;
  declare _estimate: StorageEstimate | undefined;

  static override styles = [
    base,
    css`
      ul {
        margin-bottom: 0.875rem;
      }
      li {
        display: grid;
        grid-template-columns: 1.25rem minmax(0, 1fr) auto;
        align-items: center;
        gap: 0.25rem 0.75rem;
        padding: 0.75rem 0;
        border-bottom: 1px solid var(--line);
      }
      li > svg {
        color: var(--accent);
      }
      li > ox-filling {
        grid-column: 2 / -1;
      }
      .title {
        font-weight: 600;
      }
      @media (max-width: 44rem) {
        li > .row {
          grid-column: 2;
        }
      }
      .quota {
        display: grid;
        gap: 0.375rem;
      }
    `,
  ];

  #task = new Task(this);
  #what = '';
  #changed = () => void this.load();
  #moved = () => {
    // A clone that is full says so in its own file.
    if (this._images?.some(({ name, about }) => about.url && !this.session.fillings.states.has(name))) void this.load();
    this.requestUpdate();
  };

  override connectedCallback(): void {
    super.connectedCallback();
    addEventListener('focus', this.#changed); // Another tab may have changed what is here.
    void this.load();
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    removeEventListener('focus', this.#changed);
    this.session?.fillings.removeEventListener('change', this.#moved);
  }

  override willUpdate(changed: PropertyValues<this>): void {
    if (changed.has('session')) this.session.fillings.addEventListener('change', this.#moved);
  }

  async load(): Promise<void> {
    try {
      [this._images, this._estimate] = await Promise.all([store.list(), store.estimate()]);
    } catch {
      this._images = []; // A browser without a file system of its own: nothing is kept.
    }
  }

  override render(): TemplateResult | typeof nothing {
    const images = this._images;
    const estimate = this._estimate;
    if (!images) return nothing;
    return html`
      ${images.length
        ? html`<ul role="list" aria-label="Stored images">
            ${images.map((image) => this.#row(image))}
          </ul>`
        : html`<p class="muted small">Nothing yet. Drop an image, and make a writable copy of it or import it.</p>`}
      ${this.#task.progress()} ${this.#task.problem(this.#what)}
      ${estimate && images.length
        ? html`<div class="quota small muted number">
            <progress aria-label="Room in use" max="1" .value=${estimate.quota ? estimate.usage / estimate.quota : 0}></progress>
            <p>
              ${size(estimate.usage)} in use of the ${size(estimate.quota)} that this browser gives (${percent(estimate.usage, estimate.quota)}).
              ${estimate.persisted
                ? 'Kept until you delete it.'
                : 'The browser may delete it all when the computer runs out of room: download what you need to keep.'}
            </p>
          </div>`
        : nothing}
    `;
  }

  #row(image: StoredImage): TemplateResult {
    const { name, about } = image;
    const over = Object.values(about.files ?? {})[0]?.name;
    const filling = this.session.fillings.states.get(name);
    return html`<li>
      ${icons.disk}
      <span
        ><span class="title name">${name}</span><br /><span class="small muted number name" title=${exact(image.size)}
          >${size(image.size)}${over ? `, over ${over}` : ''}${about.url ? `, clone of ${about.url.url}` : ''}, changed
          ${new Date(image.lastModified).toLocaleString(undefined, { dateStyle: 'medium', timeStyle: 'short' })}</span
        ></span
      >
      <span class="row">
        <button class="primary" aria-label=${`Open ${name}`} @click=${() => this.session.openStored(image)}>Open</button>
        <button aria-label=${`Download ${name}`} ?disabled=${this.#task.running} @click=${() => this.#download(image)}>Download</button>
        <button aria-label=${`Rename ${name}`} @click=${() => this.#rename(image)}>Rename…</button>
        <button aria-label=${`Delete ${name}`} @click=${() => this.#delete(image)}>Delete…</button>
      </span>
      ${filling ? html`<ox-filling .filling=${filling} @fill-again=${() => about.url && this.session.fillings.begin(name, about.url)}></ox-filling>` : nothing}
    </li>`;
  }

  async #download({ name }: StoredImage): Promise<void> {
    this.#what = 'Not downloaded';
    await this.#task.run('Downloading', async (watch) => {
      await this.session.fillings.letGo(name);
      await saveFile(name, watch, () => store.file(name));
    });
    await this.session.fillAll();
  }

  async #rename(image: StoredImage): Promise<void> {
    const answer = await ask({
      title: `Rename ${image.name}`,
      safe: 'The image itself stays as it is.',
      more: html`<label class="field">New name <input type="text" name="name" .value=${image.name} spellcheck="false" autocomplete="off" required /></label>`,
      action: 'Rename',
    });
    const wanted = String(answer?.get('name') ?? '').trim();
    if (!wanted || wanted === image.name) return;
    await this.#doing('Renaming', 'Not renamed', image, () => store.rename(image.name, wanted));
  }

  async #delete(image: StoredImage): Promise<void> {
    const over = Object.values(image.about.files ?? {})[0]?.name;
    const answer = await ask({
      title: `Delete ${image.name}?`,
      lost: over
        ? `Everything that was changed in this copy, and its snapshots. It takes ${size(image.size)}.`
        : `The whole disk, with its snapshots: ${size(image.size)}. It cannot be brought back.`,
      safe: over ? `The file “${over}” that it was made over, and all other images.` : 'All other images, and files on your computer.',
      action: 'Delete',
    });
    if (answer) await this.#doing('Deleting', 'Not deleted', image, () => store.remove(image.name));
  }

  async #doing(doing: string, what: string, { name }: StoredImage, work: () => Promise<unknown>): Promise<void> {
    this.#what = what;
    await this.#task.run(doing, async () => {
      await this.session.fillings.letGo(name);
      await work();
    });
    await this.load();
    await this.session.fillAll();
  }
}

customElements.define('ox-stored', Stored);
