import { Badge, Loader } from '@mantine/core'
import {
  IconAlertTriangle,
  IconBan,
  IconCircleCheck,
  IconCircleDashed,
  IconCircleX,
  IconClock,
  IconCornerDownRight,
  IconRecycle,
} from '@tabler/icons-react'

const STATES: Record<string, { text: string; color: string; icon: typeof IconClock }> = {
  WAITING: { text: 'Not started', color: 'gray', icon: IconCircleDashed },
  PENDING: { text: 'Pending', color: 'gray', icon: IconClock },
  RUNNING: { text: 'Running', color: 'blue', icon: IconClock },
  SUCCEEDED: { text: 'Succeeded', color: 'green', icon: IconCircleCheck },
  CACHED: { text: 'From cache', color: 'grape', icon: IconRecycle },
  FAILED: { text: 'Failed', color: 'red', icon: IconCircleX },
  SKIPPED: { text: 'Skipped', color: 'gray', icon: IconCornerDownRight },
  OMITTED: { text: 'Did not run', color: 'yellow', icon: IconAlertTriangle },
  SUSPENDED: { text: 'Suspended', color: 'orange', icon: IconClock },
  CANCELING: { text: 'Stopping', color: 'orange', icon: IconBan },
  CANCELED: { text: 'Stopped', color: 'orange', icon: IconBan },
}

function look(state: string) {
  return STATES[state] ?? { text: state.toLowerCase(), color: 'gray', icon: IconCircleDashed }
}

export const stateText = (state: string): string => look(state).text
export const isActive = (state: string): boolean => ['RUNNING', 'PENDING', 'CANCELING'].includes(state)

export function StateIcon({ state, size = 18 }: { state: string; size?: number }) {
  if (state === 'RUNNING' || state === 'CANCELING') return <Loader size={size} color={look(state).color} aria-hidden />
  const { icon: Icon, color } = look(state)
  return <Icon size={size} className="state-icon" color={`var(--mantine-color-${color}-text)`} aria-hidden />
}

export function StateBadge({ state }: { state: string }) {
  const { text, color } = look(state)
  return (
    <Badge variant="light" style={{ flex: 'none' }} color={color} tt="none" fw={600} size="md" leftSection={<StateIcon state={state} size={13} />}>
      {text}
    </Badge>
  )
}
